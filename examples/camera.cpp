// A camera in C++: the messages that camera.py sends, over the C API of libzmq and without a JSON library.
//
//   g++ -std=c++17 -O2 camera.cpp -o camera -lzmq       (Debian, Ubuntu: apt-get install g++ libzmq3-dev)
//   ./camera tcp://127.0.0.1:5550 front 300             endpoint, sensor id, frames (0: go on until Ctrl-C)

#include <zmq.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

constexpr int WIDTH = 48, HEIGHT = 48, CHANNELS = 3;
constexpr int FRAMES_PER_SECOND = 30;
constexpr int QUEUE_FRAMES = 4;       // a longer queue would only show recald older pictures
constexpr int LINGER_MS = 1000;       // at the end the last frames still go out
constexpr int READER_WAIT_MS = 2000;  // a recald that runs has connected by then

using Pixels = std::vector<std::uint8_t>;  // row after row, 3 bytes a pixel: red, green, blue

// A light disc that moves from left to right over a dark wall, again and again.
Pixels picture(long long number) {
    Pixels pixels(WIDTH * HEIGHT * CHANNELS, 90);
    const double x = 14 + number % 20, y = HEIGHT / 2.0, radius = 10;
    for (int row = 0; row < HEIGHT; ++row)
        for (int column = 0; column < WIDTH; ++column)
            if (std::hypot(column - x, row - y) < radius)
                for (int channel = 0; channel < CHANNELS; ++channel)
                    pixels[(row * WIDTH + column) * CHANNELS + channel] = 150;
    return pixels;
}

// A frame is one message of three parts: "front/", a header in JSON, the pixels. A PUB or XPUB socket never waits:
// where nobody reads, or a reader is too slow, the frame is dropped.
bool send_frame(void* socket, const std::string& sensor, long long seq, const Pixels& pixels) {
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    const long long timestamp = std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count();
    char header[256];
    const int length = std::snprintf(header, sizeof header,
                                     "{\"v\": 1, \"seq\": %lld, \"timestamp\": %lld, \"width\": %d, \"height\": %d, "
                                     "\"encoding\": \"rgb8\", \"step\": %d}",
                                     seq, timestamp, WIDTH, HEIGHT, WIDTH * CHANNELS);
    const std::string topic = sensor + "/";
    return zmq_send(socket, topic.data(), topic.size(), ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0 &&
           zmq_send(socket, header, length, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0 &&
           zmq_send(socket, pixels.data(), pixels.size(), ZMQ_DONTWAIT) >= 0;
}

// An XPUB socket is a PUB socket that receives a message when somebody subscribes.
bool wait_for_reader(void* socket) {
    zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
    return zmq_poll(&item, 1, READER_WAIT_MS) > 0;
}

int main(int count, char** arguments) {
    const std::string endpoint = count > 1 ? arguments[1] : "tcp://127.0.0.1:5550";
    const std::string sensor = count > 2 ? arguments[2] : "front";
    const long long frames = count > 3 ? std::atoll(arguments[3]) : 0;

    void* context = zmq_ctx_new();
    void* socket = zmq_socket(context, ZMQ_XPUB);
    const int immediate = 1;  // no queue towards a recald that is not there
    zmq_setsockopt(socket, ZMQ_IMMEDIATE, &immediate, sizeof immediate);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &QUEUE_FRAMES, sizeof QUEUE_FRAMES);
    zmq_setsockopt(socket, ZMQ_LINGER, &LINGER_MS, sizeof LINGER_MS);
    if (zmq_connect(socket, endpoint.c_str()) != 0) {
        std::fprintf(stderr, "camera: cannot connect %s: %s\n", endpoint.c_str(), zmq_strerror(zmq_errno()));
        return 1;
    }
    if (!wait_for_reader(socket))
        std::fprintf(stderr, "camera: nobody reads at %s yet: is recald running?\n", endpoint.c_str());

    long long sent = 0;
    const auto began = std::chrono::steady_clock::now();
    for (long long seq = 0; frames == 0 || seq < frames; ++seq) {
        std::this_thread::sleep_until(began + seq * std::chrono::microseconds(1'000'000 / FRAMES_PER_SECOND));
        sent += send_frame(socket, sensor, seq, picture(seq));
    }
    std::printf("%lld frames sent\n", sent);
    zmq_close(socket);
    zmq_ctx_term(context);
}
