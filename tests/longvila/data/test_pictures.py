"""What players do: display matrices, EXIF's orientation, cover pictures, joined streams, folders of frames, tiles."""

import struct

import av
import numpy as np
import pytest

from longvila.job import JobError
from longvila.processor import FrameCache, choose_frames, decode, open_clip, tile
from tests.longvila.clips import MEDIA, frame_numbers, write_clip

# Display matrices a b c d and where the stored red upper left, green upper right, blue lower left corner is shown,
# as (down, right); EXIF's orientations 1 to 8 are these eight (Exif 2.3, 4.6.4).
SHOWN = {
    1: ((1, 0, 0, 1), "rgb."),
    2: ((-1, 0, 0, 1), "gr.b"),
    3: ((-1, 0, 0, -1), ".bgr"),
    4: ((1, 0, 0, -1), "b.rg"),
    5: ((0, 1, 1, 0), "rbg."),
    6: ((0, 1, -1, 0), "br.g"),
    7: ((0, -1, -1, 0), ".gbr"),
    8: ((0, -1, 1, 0), "g.rb"),
}
COLOURS = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), ".": (0, 0, 0)}


def quarters(height=64, width=96):
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    half = (slice(None, height // 2), slice(height // 2, None)), (slice(None, width // 2), slice(width // 2, None))
    for place, colour in enumerate("rgb."):
        picture[half[0][place // 2], half[1][place % 2]] = COLOURS[colour]
    return picture


def corners(path):
    """The four quarters of the first frame as shown, by their colour."""
    pixels = (decode(choose_frames(open_clip(path), frames=1), range(1), 32)[0].permute(1, 2, 0) + 1) * 127.5
    found = [np.asarray(pixels[y, x]) for y, x in ((6, 6), (6, 25), (25, 6), (25, 25))]
    return "".join(min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - seen).sum()) for seen in found)


def write_picture(path, codec, pixel):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixel
        for _ in range(4 if path.suffix == ".mp4" else 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(), format="rgb24").reformat(format=pixel)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("orientation", SHOWN)
def test_turned_and_mirrored_videos_and_pictures_are_shown_upright(tmp_path, orientation):
    (a, b, c, d), shown = SHOWN[orientation]
    video = write_picture(tmp_path / "video.mp4", "libx264", "yuv420p")
    content = bytearray(video.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    video.write_bytes(content)
    assert corners(video) == shown
    picture = write_picture(tmp_path / "picture.jpg", "mjpeg", "yuvj444p")
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 0)
    content = picture.read_bytes()
    picture.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])
    assert corners(picture) == shown


def test_a_cover_picture_is_not_the_video(tmp_path):
    cover = write_picture(tmp_path / "cover.jpg", "mjpeg", "yuvj444p").read_bytes()
    write_clip(tmp_path / "video.mp4", "libx264", frames=5)
    with av.open(str(tmp_path / "both.mp4"), "w") as out, av.open(str(tmp_path / "video.mp4")) as video:
        picture = out.add_stream("mjpeg")
        picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj444p"
        picture.disposition = av.stream.Disposition.attached_pic
        copied = out.add_stream_from_template(video.streams.video[0])
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        out.mux(packet)
        for packet in video.demux(video.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    frames = choose_frames(open_clip(tmp_path / "both.mp4"), frames=5)
    assert frame_numbers(decode(frames, range(5), 32)) == [0, 1, 2, 3, 4]


def test_joined_streams_go_on_in_time(tmp_path):
    """Two of 30 frames, whose times begin again at the joint: at 10 frames a second, every third of all 60."""
    part = write_clip(tmp_path / "part.ts", "mpeg2video").read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    clip = open_clip(tmp_path / "joined.ts")
    assert len(clip.times) >= 58  # a decoder may drop a frame at the joint
    seconds = (clip.times[-1] - clip.times[0]) / clip.ticks_per_s
    assert seconds == pytest.approx(59 / 30, abs=0.1)
    numbers = frame_numbers(decode(choose_frames(clip, fps=10), range(20), 32))
    assert numbers[:10] == list(range(0, 30, 3)) and numbers[11:19] == pytest.approx(list(range(3, 27, 3)), abs=2)


def test_a_broken_frame_of_a_folder_shows_the_one_before(tmp_path):
    for name in ("0.png", "1.png", "3.png"):
        write_clip(tmp_path / name, "png", frames=1, pixel="rgb24")
    (tmp_path / "0.png").write_bytes(b"junk")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "4.png").mkdir()
    clip = open_clip(tmp_path)
    assert len(clip.files) == 4 and frame_numbers(decode(choose_frames(clip, frames=4), range(4), 16)) == [0] * 4
    for file in clip.files:
        file.write_bytes(b"junk")
    with pytest.raises(JobError, match="holds no picture that can be decoded"):
        decode(choose_frames(clip, frames=1), range(1), 16)


def test_a_folder_of_frames_is_a_video_in_the_order_of_names(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, name in enumerate(("f2.png", "f10.PNG", "f11.png")):
        grey = np.full((32, 32, 3), 8 + 7 * number, dtype=np.uint8)
        with av.open(str(folder / name), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.width = stream.height = 32
            stream.pix_fmt = "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode())
    (folder / "notes.txt").write_text("no picture")
    clip = open_clip(folder)
    assert frame_numbers(decode(choose_frames(clip, frames=3), range(3), 16, FrameCache(10**6))) == [0, 1, 2]
    assert frame_numbers(decode(choose_frames(clip, None, 2.0, 6), range(2, 6), 16)) == [1, 1, 2, 2]
    with pytest.raises(JobError, match="a folder without pictures"):
        open_clip(tmp_path)


def test_tiles_are_the_pictures_parts_and_the_whole(tmp_path):
    """96 x 64 pixels: of grids of up to 12 tiles 3 x 2 has its very shape, and 6 tiles of 32 pixels hold it exactly."""
    clip = open_clip(write_picture(tmp_path / "picture.png", "png", "rgb24"))
    frames = tile(clip, 32, 1, 12)
    assert frames.grid == (3, 2) and len(frames.times) == 7
    tiles = decode(frames, range(7), 32)
    picture = (tiles[:6].reshape(2, 3, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(64, 96, 3) + 1) * 127.5
    np.testing.assert_allclose(picture.numpy(), quarters(), atol=2)
    whole = decode(choose_frames(clip, frames=1), range(1), 32)
    assert np.array_equal(tiles[6], whole[0]) and np.array_equal(decode(frames, range(2, 4), 32), tiles[2:4])
    assert tile(clip, 448, 1, 1).grid == (1, 1) and len(tile(clip, 448, 1, 1).times) == 1
    assert tile(open_clip(MEDIA / "street.png"), 16, 1, 4).grid is not None


def test_a_bare_stream_has_the_rate_that_it_is_played_at(tmp_path):
    write_clip(tmp_path / "bare.h264", "libx264", frames=30)
    clip = open_clip(tmp_path / "bare.h264")  # no times: FFmpeg plays it at 25 frames a second
    assert clip.rate == pytest.approx(25.0)
    assert len(choose_frames(clip, fps=5).times) == 6
    assert frame_numbers(decode(choose_frames(clip, frames=3), range(3), 16)) == [0, 14, 29]
