import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.levels import PixelValues
from daemon.serving.message import MAX_HEADER_BYTES, Frame, FrameError, build_frame, decode, parse_frame
from daemon.serving.pixels import RAW_LAYOUTS

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

NOW = 1_700_000_000_000_000_000
SENSORS = {"front", "rear"}
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY16 = np.random.default_rng(1).integers(0, 65536, (6, 8), dtype=np.uint16)
LOSSLESS = {
    "rgb8": RGB,
    "bgr8": RGB,
    "mono8": RGB[:, :, 0],
    "mono16": GREY16,
    "png": RGB,
}


def parse(parts, now_ns=NOW, max_age=5.0) -> Frame:
    return parse_frame(parts, sensors=SENSORS, now_ns=now_ns, received=1.5, max_age=max_age)


def refuse(parts, **clock) -> FrameError:
    with pytest.raises(FrameError) as caught:
        parse(parts, **clock)
    return caught.value


def message(payload=b"\0" * 144, topic=b"front/", **changes) -> list[bytes]:
    header = {"v": 1, "seq": 7, "timestamp": NOW, "width": 8, "height": 6, "encoding": "rgb8", "step": 24}
    header |= changes
    return [topic, json.dumps({k: v for k, v in header.items() if v is not None}).encode(), payload]


def test_what_is_built_parses_to_the_same_values():
    frame = parse(build_frame("front", RGB, seq=7, timestamp=NOW, hold=True))
    assert (frame.sensor, frame.seq, frame.timestamp, frame.received) == ("front", 7, NOW, 1.5)
    assert (frame.width, frame.height, frame.encoding, frame.step, frame.hold) == (8, 6, "rgb8", 24, True)
    assert not parse(message()).hold


@pytest.mark.parametrize("encoding", LOSSLESS)
def test_lossless_encodings_keep_every_pixel(encoding):
    image = LOSSLESS[encoding]
    decoded = decode(parse(build_frame("front", image, seq=0, timestamp=NOW, encoding=encoding)))
    assert decoded.dtype == image.dtype
    np.testing.assert_array_equal(decoded, image)


@unhurried
@given(
    encoding=st.sampled_from(["rgb8", "bgr8", "mono8", "mono16"]),
    width=st.integers(1, 9),
    height=st.integers(1, 5),
    padding=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_padded_rows_decode_to_the_same_image(encoding, width, height, padding, seed):
    shape = (height, width, 3) if encoding in ("rgb8", "bgr8") else (height, width)
    dtype = np.uint16 if encoding == "mono16" else np.uint8
    image = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    topic, header, payload = build_frame("rear", image, seq=1, timestamp=NOW, encoding=encoding)
    rows = np.frombuffer(payload, np.uint8).reshape(height, -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    header = json.dumps(json.loads(header) | {"step": padded.shape[1]}).encode()
    decoded = decode(parse([topic, header, padded.tobytes()]))
    np.testing.assert_array_equal(decoded, image)
    assert decoded.strides[0] % dtype().itemsize == 0  # else OpenCV refuses it


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "mono16"])
def test_raw_integers_are_decoded_without_a_copy(encoding):
    parts = build_frame("front", LOSSLESS[encoding], seq=0, timestamp=NOW, encoding=encoding)
    image = decode(parse(parts))
    assert image.base is not None and not image.flags.writeable
    assert np.shares_memory(image, np.frombuffer(parts[2], np.uint8))


@pytest.mark.parametrize("big", [True, 1])
@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "rgb16", "32FC1", "32FC3"])
def test_big_endian_words_and_floats_are_read_as_such(encoding, big):
    channels = 3 if encoding in ("rgb16", "32FC3") else 1
    kind, size = ("f4", 4) if "F" in encoding else ("u2", 2)
    pixels = np.random.default_rng(3).random((6, 8, channels))
    little = (pixels if kind == "f4" else pixels * 65535).astype(f"<{kind}")
    given = {"encoding": encoding, "step": 8 * channels * size}
    expected = decode(parse(message(little.tobytes(), **given, is_bigendian=0)))
    decoded = decode(parse(message(little.astype(f">{kind}").tobytes(), **given, is_bigendian=big)))
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.dtype.isnative


@pytest.mark.parametrize("value", ["big", 2, -1, 1.0, None, [1]])
def test_an_order_of_bytes_that_is_none_is_refused(value):
    sent = message()
    header = json.loads(sent[1]) | {"is_bigendian": value}
    error = refuse([sent[0], json.dumps(header).encode(), sent[2]])
    assert error.reason == "header" and "is_bigendian" in str(error)


def test_the_order_of_bytes_does_not_matter_for_single_bytes():
    sent = {"payload": RGB.tobytes()}
    np.testing.assert_array_equal(decode(parse(message(**sent, is_bigendian=1))), RGB)


TWELVE_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def deep(encoding="mono16", image=TWELVE_BITS, **header):
    parts = build_frame("front", image, seq=7, timestamp=NOW, encoding=encoding)
    return parse([parts[0], json.dumps(json.loads(parts[1]) | header).encode(), parts[2]])


@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "png"])
def test_significant_bits_of_a_word_fill_its_range(encoding):
    """Said by the frame, or by the settings of its sensor; the frame knows better."""
    exact = np.rint(np.arange(4096) * (65535 / 4095)).reshape(64, 64)
    for frame, values in [
        (deep(encoding, bits=12), PixelValues()),
        (deep(encoding), PixelValues(bits=12)),
        (deep(encoding, bits=12), PixelValues(bits=16)),
    ]:
        decoded = decode(frame, values)
        assert decoded.dtype == np.uint16 and len(np.unique(decoded)) == 4096
        assert np.abs(decoded - exact).max() <= 1 and decoded[-1, -1] == 65535
    np.testing.assert_array_equal(decode(deep(encoding)), TWELVE_BITS)


@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "bayer_rggb16"])
def test_colours_keep_their_order_when_their_bits_are_spread_or_inverted(encoding):
    colour = np.array([4095, 1000, 0], np.uint16)  # red, green, blue
    mosaic = np.tile(colour[[[0, 1], [1, 2]]], (4, 4))
    frame = deep(encoding, mosaic if "bayer" in encoding else np.tile(colour, (4, 4, 1)), bits=12)
    spread = np.array([65535, 16004, 0])
    assert np.abs(decode(frame)[2, 2] - spread).max() <= 1
    assert np.abs(decode(frame, PixelValues(inverted=True))[2, 2] - (65535 - spread)).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_value_beyond_its_bits_is_refused(bits):
    image = np.full((4, 4), 2**bits, np.uint16)
    assert decode(deep(image=image - 1, bits=bits)).min() == 65535
    with pytest.raises(FrameError, match=f"the value {2**bits} has more than {bits} bits") as caught:
        decode(deep(image=image, bits=bits))
    assert caught.value.reason == "bits"


@pytest.mark.parametrize("bits", [0, 7, 17, "12", 12.0, True, None])
def test_a_number_of_bits_that_no_word_has_is_refused(bits):
    header = {"v": 1, "seq": 7, "timestamp": NOW, "width": 8, "height": 6, "encoding": "mono16", "step": 16}
    error = refuse([b"front/", json.dumps(header | {"bits": bits}).encode(), b"\0" * 96])
    assert error.reason == "header" and "bits" in str(error)


def test_bits_of_another_encoding_are_another_programs_business():
    assert parse(message(bits=24)).bits is None


def test_an_inverted_picture_is_turned_round_in_every_depth():
    inverted = PixelValues(inverted=True)
    np.testing.assert_array_equal(decode(deep("mono8", RGB[:, :, 0]), inverted), 255 - RGB[:, :, 0])
    np.testing.assert_array_equal(decode(deep("mono16", GREY16), inverted), 65535 - GREY16)
    assert decode(deep(bits=12), inverted)[[0, -1], [0, -1]].tolist() == [65535, 0]
    floats = decode(parse(message(np.float32([[0, 0.5]]).tobytes(), encoding="32FC1", width=2, height=1, step=8)))
    assert floats.tolist() == [[0, 127.5]]
    sent = message(np.float32([[0, 0.5]]).tobytes(), encoding="32FC1", width=2, height=1, step=8)
    assert decode(parse(sent), inverted).tolist() == [[255, 127.5]]


@unhurried
@given(
    encoding=st.sampled_from([*RAW_LAYOUTS, "jpeg", "png"]),
    width=st.integers(1, 12),
    height=st.integers(1, 12),
    extra=st.integers(-3, 5),
    big_endian=st.booleans(),
    bits=st.integers(8, 16),
    inverted=st.booleans(),
    data=st.data(),
)
def test_any_payload_of_any_encoding_is_an_image_or_refused(
    encoding, width, height, extra, big_endian, bits, inverted, data
):
    layout = RAW_LAYOUTS.get(encoding)
    step = max(1, width * layout.pixel_bytes + extra) if layout else None
    size = step * layout.rows(height) if layout else 100
    payload = data.draw(st.binary(min_size=size, max_size=size)) if data.draw(st.booleans()) else bytes(size)
    header = {"encoding": encoding, "width": width, "height": height, "step": step, "bits": bits}
    try:
        image = decode(parse(message(payload, **header, is_bigendian=big_endian)), PixelValues(inverted=inverted))
    except FrameError as error:
        assert error.reason in ("size", "decode", "bits", "nonfinite")
        return
    assert image.shape in ((height, width), (height, width, 3))
    assert image.dtype in (np.uint8, np.uint16, np.float32) and image.dtype.isnative


def test_float_images_are_scaled_and_clipped():
    pixels = np.array([[0.0, 0.5, 1.0, 7.0]], "<f4")
    frame = parse(message(pixels.tobytes(), encoding="32FC1", width=4, height=1, step=16))
    np.testing.assert_allclose(decode(frame), [[0, 127.5, 255, 255]])


def test_float_colour_keeps_its_order():
    pixels = np.array([[[0.0, 0.5, 1.0]]], "<f4").tobytes()
    rgb = decode(parse(message(pixels, encoding="32FC3", width=1, height=1, step=12)))
    bgr = decode(parse(message(pixels, encoding="32FC3-bgr", width=1, height=1, step=12)))
    np.testing.assert_allclose(rgb, [[[0, 127.5, 255]]])
    np.testing.assert_allclose(bgr, [[[255, 127.5, 0]]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_are_refused(value):
    pixels = np.array([[0.5, value]], "<f4")
    frame = parse(message(pixels.tobytes(), encoding="32FC1", width=2, height=1, step=8))
    with pytest.raises(FrameError) as caught:
        decode(frame)
    assert (caught.value.reason, caught.value.sensor, caught.value.frame.seq) == ("nonfinite", "front", 7)


def test_decoding_problems_carry_reason_and_sensor():
    with pytest.raises(FrameError) as caught:
        decode(parse(message(b"no jpeg", encoding="jpeg", step=None)))
    assert (caught.value.reason, caught.value.sensor) == ("decode", "front")


def test_compressed_image_of_another_size_is_refused():
    topic, _, payload = build_frame("front", RGB, seq=0, timestamp=NOW, encoding="png")
    with pytest.raises(FrameError) as caught:
        decode(parse(message(payload, topic, encoding="png", step=None, width=9)))
    assert caught.value.reason == "size"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v": 2}, "version"),
        ({"v": None}, "version"),
        ({"v": True}, "version"),
        ({"v": 1.0}, "version"),
        ({"seq": -1}, "header"),
        ({"seq": 2**63}, "header"),
        ({"seq": True}, "header"),
        ({"seq": 1.5}, "header"),
        ({"seq": "1"}, "header"),
        ({"seq": None}, "header"),
        ({"timestamp": str(NOW)}, "header"),
        ({"width": 0}, "header"),
        ({"width": 16385}, "header"),
        ({"height": [6]}, "header"),
        ({"step": None}, "header"),
        ({"hold": 1}, "header"),
        ({"encoding": "yuv"}, "encoding"),
        ({"encoding": ["rgb8"]}, "encoding"),
        ({"step": 23}, "size"),
        ({"step": 25}, "size"),
        ({"height": 5}, "size"),
        ({"timestamp": NOW - 5_000_000_001}, "stale"),
        ({"timestamp": NOW + 1_000_000_001}, "future"),
    ],
)
def test_wrong_headers_are_refused_with_their_reason(changes, reason):
    error = refuse(message(**changes))
    assert (error.reason, error.sensor) == (reason, "front")


@pytest.mark.parametrize("offset", [-5_000_000_000, 1_000_000_000])
def test_ages_at_the_limit_are_accepted(offset):
    assert parse(message(timestamp=NOW + offset)).timestamp == NOW + offset


def test_the_refusal_of_a_stale_frame_has_its_number():
    assert refuse(message(timestamp=NOW - 10**10)).frame.seq == 7


def test_rows_shorter_than_the_width_are_refused_though_the_payload_fits():
    assert refuse(message(b"\0" * 23 * 6, step=23)).reason == "size"


def test_a_key_given_twice_is_refused_though_all_is_valid():
    topic, header, payload = message()
    assert refuse([topic, header[:-1] + b', "seq": 7}', payload]).reason == "header"


def test_header_bytes_are_limited():
    topic, header, payload = message()
    assert parse([topic, header.ljust(MAX_HEADER_BYTES), payload]).seq == 7
    assert refuse([topic, header.ljust(MAX_HEADER_BYTES + 1), payload]).reason == "header"


def test_unknown_header_keys_are_ignored():
    assert parse(message(exposure=0.01, gps={"lat": 1})).seq == 7


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"7",
        b"{",
        b'{"v":1}{"v":1}',
        b'{"v": NaN}',
        b'{"v": 1, "x": -Infinity}',
        b'{"v": 1, "v": 1}',
        b'{"v": 1, "x": {"a": 1, "a": 2}}',
        b'\xff\xfe{"v":1}',
        '{"v": 1}'.encode("utf-16"),
        b'\xef\xbb\xbf{"v": 1}',
        b'{"v": 1, "seq": ' + b"9" * 20_000 + b"}",
        b'{"v": 1, "seq": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b"[" * 60_000,
        b'{"v": 1, "seq": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"v": 1, "seq": "\\ud800"}',
        json.dumps({"v": 1, "seq": "x" * 60_000, "encoding": "rgb8"}).encode(),
        json.dumps({"v": 1, "encoding": "x" * 60_000}).encode(),
    ],
)
def test_hostile_headers_are_refused(header):
    error = refuse([b"front/", header, b""])
    assert error.reason in ("header", "encoding")
    assert len(str(error).encode()) < 300  # it goes to the log, where a lone surrogate would be another error


@pytest.mark.parametrize("topic", [b"side/", b"front", b"", b"/", b"front//", b"frontx", b"\xff/", b"front/" * 100])
def test_foreign_sensors_are_refused_as_unknown(topic):
    error = refuse(message(topic=topic))
    assert (error.reason, error.sensor) == ("sensor", "unknown")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_wrong_part_counts_are_refused(count):
    assert refuse([b"front/"] * count).reason == "parts"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
VALUES = JSON | st.sampled_from([1, 8, 6, 24, NOW, "rgb8", "mono8", "jpeg", "png", "uint8", [6, 8, 3]])
KEYS = ["v", "seq", "timestamp", "width", "height", "encoding", "step", "hold", "msg", "dtype", "shape"]
HEADERS = st.dictionaries(st.sampled_from(KEYS), VALUES).map(lambda h: json.dumps(h).encode()) | st.binary()
TOPICS = st.sampled_from([b"front/", b"rear/"]) | st.binary()


@unhurried
@given(
    st.tuples(TOPICS, HEADERS, st.binary()).map(list)
    | st.tuples(HEADERS, st.binary()).map(list)
    | st.lists(st.binary(), max_size=5)
)
def test_any_bytes_parse_or_are_refused(parts):
    try:
        frame = parse(parts)
        decode(frame)
    except FrameError as error:
        assert error.sensor in SENSORS | {"unknown"}


@unhurried
@given(VALUES, st.sampled_from(KEYS))
def test_any_value_for_one_key_parses_or_is_refused(value, key):
    try:
        assert parse(message(**{key: value})).sensor == "front"
    except FrameError as error:
        assert error.reason in {"header", "version", "encoding", "size", "stale", "future"}


def imagezmq(payload: bytes, **header) -> list[bytes]:
    return [json.dumps({"msg": "front"} | header).encode(), payload]


def test_imagezmq_image_is_accepted_as_bgr():
    frame = parse(imagezmq(RGB.tobytes(), dtype="uint8", shape=[6, 8, 3]))
    assert (frame.sensor, frame.seq, frame.timestamp, frame.encoding) == ("front", 0, NOW, "bgr8")
    np.testing.assert_array_equal(decode(frame), RGB[:, :, ::-1])


def test_imagezmq_grey_16_bit_and_float_images_are_accepted():
    grey = RGB[:, :, 0]
    np.testing.assert_array_equal(decode(parse(imagezmq(grey.tobytes(), dtype="uint8", shape=[6, 8]))), grey)
    assert parse(imagezmq(GREY16.tobytes(), dtype="uint16", shape=[6, 8, 1])).encoding == "mono16"
    colour = np.full((6, 8, 3), [0, 0.2, 1], "<f4")
    decoded = decode(parse(imagezmq(colour.tobytes(), dtype="float32", shape=[6, 8, 3])))
    np.testing.assert_allclose(decoded[0, 0], [255, 51, 0], rtol=1e-6)


def test_imagezmq_jpeg_is_accepted():
    jpeg = build_frame("front", RGB, seq=0, timestamp=NOW, encoding="jpeg")[2]
    frame = parse(imagezmq(jpeg))
    assert (frame.width, frame.height, frame.encoding) == (8, 6, "jpeg")
    assert decode(frame).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"dtype": "uint8", "shape": [6, 8, 2]}, "encoding"),
        ({"dtype": "object", "shape": [6, 8, 3]}, "encoding"),
        ({"dtype": ["uint8"], "shape": [6, 8, 3]}, "encoding"),
        ({"dtype": "uint8", "shape": [6, 8.0, 3]}, "header"),
        ({"dtype": "uint8", "shape": [6, None, 3]}, "header"),
        ({"dtype": "uint8", "shape": [6]}, "header"),
        ({"dtype": "uint8"}, "header"),
        ({"dtype": "uint8", "shape": [-6, -8, 3]}, "header"),
        ({"dtype": "uint8", "shape": [6, 9, 3]}, "size"),
        ({}, "decode"),
    ],
)
def test_wrong_imagezmq_headers_are_refused(header, reason):
    error = refuse(imagezmq(RGB.tobytes(), **header))
    assert (error.reason, error.sensor) == (reason, "front")


def test_imagezmq_message_without_a_sensor_is_refused():
    assert refuse([b'{"msg": {"a": 1}}', b""]).reason == "sensor"


@pytest.mark.parametrize(("encoding", "image"), [("rgb8", GREY16), ("mono8", RGB), ("yuv", RGB)])
def test_an_image_that_does_not_fit_its_encoding_is_not_built(encoding, image):
    with pytest.raises(ValueError, match=encoding):
        build_frame("front", image, seq=0, timestamp=NOW, encoding=encoding)


def test_a_clock_of_today_is_accepted():
    now = time.time_ns()
    assert parse(build_frame("front", RGB, seq=0, timestamp=now), now_ns=now).timestamp == now
