/* Records every attempt to reach another machine, and refuses it. Preloaded by a test. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void record(const char *what, const char *where) {
    const char *path = getenv("RECALD_TEST_ATTEMPTS");
    char line[512];
    int length = snprintf(line, sizeof line, "%s %s\n", what, where);
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file >= 0) {
        if (write(file, line, length) < 0) abort();
        close(file);
    }
}

static int is_remote(const struct sockaddr *address, char *text, socklen_t size) {
    if (!address) return 0;
    if (address->sa_family == AF_INET) {
        const struct in_addr *ip = &((const struct sockaddr_in *)address)->sin_addr;
        inet_ntop(AF_INET, ip, text, size);
        return (ntohl(ip->s_addr) >> 24) != 127 && ip->s_addr != INADDR_ANY;
    }
    if (address->sa_family == AF_INET6) {
        const struct in6_addr *ip = &((const struct sockaddr_in6 *)address)->sin6_addr;
        inet_ntop(AF_INET6, ip, text, size);
        return !IN6_IS_ADDR_LOOPBACK(ip) && !IN6_IS_ADDR_UNSPECIFIED(ip);
    }
    return 0;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    char text[64];
    if (is_remote(address, text, sizeof text)) {
        record("connect", text);
        errno = ENETUNREACH;
        return -1;
    }
    int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return next(socket, address, length);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    char text[64];
    if (is_remote(address, text, sizeof text)) {
        record("sendto", text);
        errno = ENETUNREACH;
        return -1;
    }
    ssize_t (*next)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    return next(socket, data, size, flags, address, length);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (node && strcmp(node, "localhost") && strncmp(node, "127.", 4) && strcmp(node, "::1") && strcmp(node, "0.0.0.0")) {
        record("getaddrinfo", node);
        return EAI_FAIL;
    }
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    return next(node, service, hints, found);
}
