import shutil
import struct
import zlib
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from robustlit.data import DataError, ImageFolder, load_mnist


def write(folder: Path, start: int, count: int, classes: int = 3) -> None:
    """Writes `count` real digits of each of the first classes as 28 x 28 PNGs."""
    images, labels = load_mnist()[:2]
    for label in range(classes):
        (folder / f"digit_{label}").mkdir(parents=True)
        for number in (labels == label).nonzero()[start : start + count, 0].tolist():
            Image.fromarray(images[number, 0].numpy()).save(folder / f"digit_{label}" / f"{number:05d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train", 0, 20)
    write(tmp_path / "test", 20, 5)
    return tmp_path


def module(root: Path, **arguments) -> ImageFolder:
    settings = {"channels": 1, "batch_size": 8, "eval_batch_size": 4, "num_workers": 0, "val_size": 12}
    return ImageFolder(root, 28, **(settings | arguments))


def test_pictures_come_back_exactly(root: Path):
    data = module(root)
    assert (data.num_classes, data.in_chans, data.image_size) == (3, 1, 28)
    assert data.class_names == ("digit_0", "digit_1", "digit_2")
    images = load_mnist()[0]
    x, y, index = data.tensors("test")
    assert index.tolist() == list(range(15))
    assert y.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    paths = sorted((root / "test").glob("*/*.png"))
    assert torch.equal(x, images[[int(path.stem) for path in paths]].float().div(255))


@pytest.mark.parametrize("in_memory", [False, True])
def test_large_pictures_are_evaluated_fewer_at_once(root: Path, in_memory: bool):
    write(root / "val", 30, 13)
    data = ImageFolder(root, 224, channels=1, batch_size=64, num_workers=0, in_memory=in_memory)
    assert [len(y) for _, y, _ in data.val_dataloader()] == [32, 7]
    assert [len(y) for _, y, _ in data.test_dataloader()] == [15]
    assert [len(y) for _, y, _ in data.train_dataloader()] == [60]


def test_validation_is_held_out_and_stratified(root: Path):
    data = module(root)
    _, y, val = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    train = torch.cat([index for _, _, index in data.train_dataloader()])
    assert y.bincount().tolist() == [4, 4, 4]
    assert torch.cat([val, train]).sort().values.tolist() == list(range(60))


def test_a_val_folder_is_used_whole(root: Path):
    write(root / "val", 30, 2)
    data = module(root)
    assert sum(len(y) for _, y, _ in data.val_dataloader()) == 6
    assert sum(len(y) for _, y, _ in data.train_dataloader()) == 60
    assert data.tensors("val")[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert data.tensors("val", 3)[1].tolist() == [0, 1, 2]
    assert len(data.tensors("train")[0]) == 60


def test_colour_and_scaling(root: Path):
    data = ImageFolder(root, 14, channels=3, num_workers=0)
    x, _, _ = next(iter(data.test_dataloader()))
    assert x.shape == (15, 3, 14, 14)
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.equal(x[:, 0], x[:, 1])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_test_batches(root: Path, world_size: int):
    alone = [index.tolist() for _, _, index in module(root).test_dataloader()]
    shards = []
    for rank in range(world_size):
        data = module(root)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        shards.append([index.tolist() for _, _, index in data.test_dataloader()])
        assert len(data.tensors("test")[0]) == 15
    for number, batch in enumerate(alone):
        assert shards[number % world_size][number // world_size] == batch


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (64, 4)])
def test_there_are_no_more_workers_than_cores(root: Path, monkeypatch, cores: int, expected: int):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
    assert ImageFolder(root, 28).num_workers == expected
    assert ImageFolder(root, 28, num_workers=7).num_workers == 7
    with pytest.raises(ValueError, match="num_workers must be an integer of at least 0, got -1"):
        ImageFolder(root, 28, num_workers=-1)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_resume_is_exact_with_augmentation_and_workers(root: Path, workers: int):
    def loader(num_workers: int):
        batches = module(root, augment=True, num_workers=num_workers).train_dataloader()
        batches.sampler.set_epoch(1)
        return batches

    before = torch.get_rng_state()
    expected = list(loader(0))
    stopped = loader(workers)
    list(islice(stopped, 2))
    # A worker has read further by now; the state counts the batches returned.
    assert stopped.state_dict()["position"] == 2
    resumed = loader(workers)
    resumed.load_state_dict(stopped.state_dict())
    rest = list(resumed)
    assert len(rest) == len(expected) - 2
    assert resumed.state_dict()["position"] == len(expected)
    for got, wanted in zip(rest, expected[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert torch.equal(torch.get_rng_state(), before)

    other_epoch = loader(0)
    other_epoch.sampler.set_epoch(2)
    pictures = {int(i): x for xs, _, index in other_epoch for i, x in zip(index, xs, strict=True)}
    assert any(
        not torch.equal(pictures[int(i)], x) for xs, _, index in expected for i, x in zip(index, xs, strict=True)
    )


def test_folders_and_pictures_that_cannot_be_used_are_named(root: Path):
    damaged = sorted((root / "test").glob("*/*.png"))[3]
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{damaged.name} cannot be decoded"):
        module(root).tensors("test")
    (root / "test" / "digit_2").rename(root / "test" / "two")
    with pytest.raises(DataError, match=r"missing \['digit_2'\], not in train/ \['two'\]"):
        module(root).setup()
    (root / "test").rename(root / "tests")
    with pytest.raises(DataError, match=r"test is missing; expected"):
        module(root).setup("test")
    for path in (root / "train" / "digit_1").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"digit_1 holds no pictures"):
        module(root).setup()
    with pytest.raises(DataError, match=r"nowhere.train is missing; expected root/train/CLASS"):
        module(root / "nowhere")


@pytest.mark.parametrize(("arguments", "message"), [({"channels": 2}, "got 2"), ({"val_size": 0}, "got 0")])
def test_bad_arguments_are_named(root: Path, arguments, message):
    with pytest.raises(ValueError, match=message):
        module(root, **arguments)


def one_picture(tmp_path: Path, image: Image.Image, suffix: str = ".png", **settings) -> torch.Tensor:
    """Return a picture (C, H, W) as an ImageFolder of two classes that holds it gives it."""
    for split in ("train", "test"):
        for label in ("0", "1"):
            (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
            for number in range(2):
                image.save(tmp_path / split / label / f"{number}{suffix}", **settings.get("save", {}))
    arguments = {"channels": 1, "num_workers": 0, "val_size": 2} | {k: v for k, v in settings.items() if k != "save"}
    return ImageFolder(tmp_path, min(image.size), **arguments).tensors("test")[0][0]


DEEP = [
    ("16 bits", np.uint16, 257, ".png", 65535),
    ("12 bits in 16", np.uint16, 16, ".tif", 255 * 16),
    ("floats", np.float32, 1 / 255, ".tif", 1.0),
    ("32 bits", np.int32, 1000, ".tif", 255_000),
]


@pytest.mark.parametrize(("name", "kind", "factor", "suffix", "white"), DEEP, ids=[d[0] for d in DEEP])
def test_pictures_of_more_than_8_bits_need_the_value_of_white(tmp_path, name, kind, factor, suffix, white):
    digit = load_mnist()[0][0, 0]
    image = Image.fromarray((digit.numpy() * kind(factor)).astype(kind))
    with pytest.raises(DataError, match=r"0\.(png|tif) has more than 8 bits per value .* white=VALUE"):
        one_picture(tmp_path, image, suffix)
    assert torch.equal(one_picture(tmp_path, image, suffix, white=white)[0], digit.float() / 255)
    assert one_picture(tmp_path, image, suffix, white=white, channels=3).shape == (3, 28, 28)
    with pytest.raises(DataError, match=r"values from 0 to \S+, and white=\S+: they must lie in \[0, white\]"):
        one_picture(tmp_path, image, suffix, white=white / 2)


def test_transparent_pixels_are_seen_on_white(tmp_path: Path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., :3] = (255, 0, 0)
    pixels[:2, :, 3] = 255
    image = Image.fromarray(pixels)
    red, white = torch.tensor([1.0, 0, 0]), torch.ones(3)
    for kind in ("RGBA", "P"):
        picture = one_picture(tmp_path, image.convert(kind), channels=3)
        assert torch.equal(picture[:, 0, 0], red)
        assert torch.equal(picture[:, 3, 0], white), kind
    assert one_picture(tmp_path, image.convert("LA"))[0, 3, 0] == 1


def test_a_photo_is_turned_as_its_camera_was_held(tmp_path: Path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: white is on top
    picture = one_picture(tmp_path, Image.fromarray(pixels), save={"exif": exif})[0]
    assert (picture[:4] == 1).all()
    assert (picture[4:] == 0).all()


def test_hidden_files_and_folders_are_no_pictures(root: Path):
    expected = [len(module(root).tensors(split)[0]) for split in ("train", "val", "test")]
    for split in ("train", "test"):
        folder = root / split / "digit_0"
        copies = folder / ".ipynb_checkpoints"
        copies.mkdir()
        shutil.copy(next(folder.glob("*.png")), copies / "copy.png")
        (folder / "._0.png").write_bytes(b"\x00\x05\x16\x07")
        (root / split / ".thumbnails").mkdir()
        (folder / "folder.png").mkdir()
    assert [len(module(root).tensors(split)[0]) for split in ("train", "val", "test")] == expected


BROKEN = {"empty": b"", "cut": b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "gif": b"GIF89a", "text": b"text"}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_picture_is_named(root: Path, content: bytes):
    next((root / "test" / "digit_1").glob("*.png")).write_bytes(content)
    with pytest.raises(DataError, match=r"digit_1/\d+\.png cannot be decoded as a picture"):
        module(root).tensors("test")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_worker_process_is_the_message_alone(root: Path, workers: int):
    next((root / "test" / "digit_1").glob("*.png")).write_bytes(b"text")
    with pytest.raises(DataError) as caught:
        module(root, num_workers=workers).tensors("test")
    assert str(caught.value).startswith(f"{root}/test/digit_1/")
    assert str(caught.value).endswith("replace or remove it")
    assert "\n" not in str(caught.value)


def test_one_class_alone_is_refused_by_its_folder(tmp_path: Path):
    write(tmp_path / "train", 0, 5, classes=1)
    with pytest.raises(DataError, match=r"train must have two class folders or more, found 'digit_0' alone; expected"):
        module(tmp_path)


def test_small_pictures_are_shifted_over_zeros_and_mirrored(root: Path):
    data = module(root, augment=True, crop_padding=2)
    plain = data.tensors("train")[0]
    x, _, index = next(iter(data.train_dataloader()))
    places = {number: place for place, number in enumerate(data.tensors("train")[2].tolist())}
    shifts = []
    for picture, number in zip(x, index.tolist(), strict=True):
        padded = torch.nn.functional.pad(plain[places[number]], [2] * 4)
        windows = [padded[:, i : i + 28, j : j + 28] for i in range(5) for j in range(5)]
        shifts += [k for k, w in enumerate(windows) if torch.equal(w, picture) or torch.equal(w.flip(2), picture)][:1]
    assert len(shifts) == len(x)  # each is a window of itself at its own scale
    assert len(set(shifts)) > 1
    assert torch.equal(next(iter(data.test_dataloader()))[0], data.tensors("test")[0][:4])
    with pytest.raises(ValueError, match="crop_padding must be"):
        module(root, crop_padding=-1)


def test_in_memory_are_the_same_pictures_in_the_same_order(root: Path) -> None:
    write(root / "val", 30, 2)
    for settings in ({}, {"train_size": 30}, {"crop_padding": 0}):
        files, memory = module(root, **settings), module(root, in_memory=True, **settings)
        for split in ("train", "val", "test"):
            for ours, theirs in zip(memory.tensors(split), files.tensors(split), strict=True):
                assert torch.equal(ours, theirs)
        for loaders in (
            (d.train_dataloader() for d in (files, memory)),
            (d.test_dataloader() for d in (files, memory)),
        ):
            for ours, theirs in zip(*loaders, strict=True):
                assert all(map(torch.equal, ours, theirs))


def test_in_memory_crops_and_mirrors_afresh(root: Path) -> None:
    data = module(root, in_memory=True, augment=True, crop_padding=2)
    first, again, second = (
        [x for x, _, _ in loader] for loader in (data.train_dataloader(), data.train_dataloader(), later(data))
    )
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], second[0])
    x, _, index = next(iter(data.train_dataloader()))
    whole = data.examples("train", index)[0]
    padded = torch.nn.functional.pad(whole, [2] * 4)
    windows = [padded[:, :, r : r + 28, c : c + 28] for r in range(5) for c in range(5)]
    near = torch.stack([(x - w).abs().amax((1, 2, 3)) for v in windows for w in (v, v.flip(3))])
    assert not near.amin(0).any()  # each is a window of its own picture, as it is or mirrored
    with pytest.raises(ValueError, match="set crop_padding"):
        module(root, in_memory=True, augment=True)


def later(data: ImageFolder):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    return loader


def deep_png(pixels: np.ndarray) -> bytes:
    """Returns a PNG of 16 bits per value, which Pillow cannot write, of (H, W, C)."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colours_are_read_where_they_use_the_whole_range(root: Path, channels: int):
    digit = load_mnist()[0][0, 0].numpy().astype(np.uint16)
    pixels = np.repeat(digit[..., None], channels, 2)
    if channels != 3:
        pixels[..., -1] = 255  # opaque
    for white, factor in ((None, 257), (4095, 16), (65535, 257)):
        for picture in root.glob("*/*/*.png"):
            picture.write_bytes(deep_png(pixels * factor))
        if white != 65535:
            with pytest.raises(DataError, match=r"\.png has more than 8 bits per colour value, .* white=65535"):
                module(root, white=white, channels=3).tensors("test")
        else:
            x = module(root, white=white, channels=3).tensors("test")[0]
            assert torch.equal(x[0, 1], torch.from_numpy(digit.astype(np.float32)) / 255)


@pytest.mark.parametrize("colour", [False, True])
def test_a_portable_map_names_its_own_white(root: Path, colour: bool):
    digit = load_mnist()[0][0, 0].numpy().astype(np.uint16)
    values = np.repeat(digit[..., None], 3, 2) if colour else digit
    for picture in root.glob("*/*/*.png"):
        head = f"P{6 if colour else 5} 28 28 4080\n".encode()
        picture.with_suffix(".ppm").write_bytes(head + (values * 16).astype(">u2").tobytes())
        picture.unlink()
    x = module(root, white=4080).tensors("test")[0]
    torch.testing.assert_close(x[0, 0], torch.from_numpy(digit.astype(np.float32)) / 255, rtol=0, atol=1.01 / 255)


def test_linked_folders_are_read_once_and_other_files_are_named(root: Path, tmp_path_factory: pytest.TempPathFactory):
    more, inside = tmp_path_factory.mktemp("more"), root / "train" / "digit_0"
    for number, picture in enumerate(sorted((root / "test" / "digit_0").glob("*.png"))):
        shutil.copy(picture, more / f"copy_{number}.png")
    (inside / "more").symlink_to(more)
    (inside / "again").symlink_to(more)
    (more / "round").symlink_to(more)
    assert len(module(root).split_labels()[0]) == 60 + 5
    for name in ("a.gif", "b.GIF", "notes"):
        (inside / name).write_text("")
    with pytest.warns(UserWarning, match=r"train holds 3 files that are not read \(2 \.gif, 1 without ending\)"):
        assert len(module(root).split_labels()[0]) == 60 + 5


def test_a_bitmap_of_16_bits_per_pixel_is_not_deep(root: Path):
    digit = load_mnist()[0][0, 0].numpy().astype(np.uint16)
    pixels = ((digit >> 3 << 11) | (digit >> 2 << 5) | (digit >> 3)).astype("<u2")[::-1].tobytes()  # 5, 6 and 5 bits
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    info = struct.pack("<IiiHHIIiiII", 40, 28, 28, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    head = struct.pack("<2sIHHI", b"BM", 66 + len(pixels), 0, 0, 66)
    for picture in root.glob("*/*/*.png"):
        picture.with_suffix(".bmp").write_bytes(head + info + masks + pixels)
        picture.unlink()
    x = module(root, channels=3).tensors("test")[0]
    torch.testing.assert_close(x[0, 1], torch.from_numpy(digit.astype(np.float32)) / 255, rtol=0, atol=4.1 / 255)
