"""Image sets read from files like the published ones, their scaling, and batches addressed by step."""

import gzip
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from imm.batch import ImageBatches
from imm.data import SIGMA_DATA, Scaling, hold_out, load_images
from imm.sources import Split, read_idx


def pictures(seed=0, n=12, size=8, channels=1):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def put_idx(path, array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def put_pictures(folder, images, suffix="png"):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{i:02}.{suffix}")


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def test_digits_are_split_by_class_once_and_for_all(digits):
    assert len(digits.train) + len(digits.test) == 1797 and digits.num_classes == 10 and digits.shape == (1, 8, 8)
    share = np.bincount(digits.test_labels) / np.bincount(np.r_[digits.train_labels, digits.test_labels])
    assert (abs(share - 0.2) < 0.01).all()
    again = load_images("digits")
    assert again.fingerprint == digits.fingerprint and (again.test == digits.test).all()
    train = {image.tobytes() for image in digits.train}
    assert not any(image.tobytes() in train for image in digits.test)


def test_where_an_image_goes_depends_on_its_own_bytes_only():
    images, labels = pictures(n=40), np.arange(40) % 4
    order = np.random.default_rng(1).permutation(40)
    one, other = hold_out(Split(images, labels)), hold_out(Split(images[order], labels[order]))
    for a, b in zip(one, other, strict=True):
        assert {i.tobytes() for i in a.images} == {i.tobytes() for i in b.images}
    twice = hold_out(Split(np.r_[images, images], np.r_[labels, labels]))
    assert not {i.tobytes() for i in twice[0].images} & {i.tobytes() for i in twice[1].images}
    with pytest.raises(ValueError, match="too few"):
        hold_out(Split(images[:4], labels[:4]))


def test_model_space_has_mean_zero_and_the_wanted_deviation(digits):
    x = digits.scaling.to_model(digits.train)
    assert x.shape == (len(digits.train), 1, 8, 8) and x.dtype == torch.float32
    assert abs(x.double().mean()) < 1e-6 and x.double().std(correction=0) == pytest.approx(SIGMA_DATA, rel=1e-5)


@pytest.mark.parametrize("scaling", [Scaling(0.0, 1.0), Scaling(-0.74, 0.81), Scaling(0.3, 4.0)])
def test_pixels_come_back_from_model_space(scaling):
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    assert (scaling.to_pixels(scaling.to_model(every)) == every).all()
    beyond = scaling.to_pixels(torch.tensor([-99.0, 99.0]).reshape(2, 1, 1, 1))
    assert beyond.flatten().tolist() == [0, 255]


def test_a_constant_set_is_refused(tmp_path):
    put_pictures(tmp_path / "a", np.full((4, 8, 8, 1), 7, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None])
    images = load_images(str(tmp_path))
    constant = type(images)(images.train * 0, *list(vars(images).values())[1:7])
    with pytest.raises(ValueError, match="same value"):
        _ = constant.scaling


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read_by_name(name, tmp_path, monkeypatch):
    for prefix, n in (("train", 6), ("t10k", 4)):
        put_idx(tmp_path / name / f"{prefix}-images-idx3-ubyte.gz", pictures(n, n)[..., 0])
        put_idx(tmp_path / name / f"{prefix}-labels-idx1-ubyte.gz", np.arange(n))
    images = load_images(name, root=str(tmp_path))
    assert (images.train == pictures(6, 6)).all() and images.test_labels.tolist() == [0, 1, 2, 3]
    monkeypatch.setenv("LEAPLM_DATA", str(tmp_path))
    assert load_images(name).fingerprint == images.fingerprint and images.name == name
    put_idx(tmp_path / name / "t10k-labels-idx1-ubyte.gz", np.arange(3))
    with pytest.raises(ValueError, match="4 images and 3 labels"):
        load_images(name)


def test_a_broken_idx_file_is_one_line(tmp_path):
    path = tmp_path / "x.gz"
    put_idx(path, np.arange(10))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    for content in (path.read_bytes(), b"no gzip", gzip.compress(b"\0\0\x0d\1\0\0\0\0"), gzip.compress(b"\0")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no idx file"):
            read_idx(path)
    with pytest.raises(ValueError, match="is missing"):
        read_idx(tmp_path / "none.gz")


def test_tiles_of_a_mosaic_come_out_row_by_row(tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    parts = {name: pictures(seed, 6, 32, 3) for seed, name in enumerate(("train_0", "train_1", "test"))}
    for name, images in parts.items():
        mosaic = np.concatenate([np.concatenate(list(images[r * 3 : r * 3 + 3]), 1) for r in range(2)], 0)
        Image.fromarray(mosaic).save(folder / f"{name}.webp", lossless=True)
        np.save(folder / f"{name}_labels.npy", np.arange(6, dtype=np.uint8))
    images = load_images("cifar10", root=str(tmp_path))
    assert (images.train == np.concatenate([parts["train_0"], parts["train_1"]])).all()
    assert (images.test == parts["test"]).all() and images.shape == (3, 32, 32)
    (folder / "test_labels.npy").unlink()
    with pytest.raises(ValueError, match="no readable test_labels"):
        load_images("cifar10", root=str(tmp_path))


def test_a_folder_of_classes_is_a_set(tmp_path):
    grey, colour = pictures(0, 10), pictures(1, 10, 8, 3)
    put_pictures(tmp_path / "b", grey)
    put_pictures(tmp_path / "a", colour)
    images = load_images(str(tmp_path))
    assert images.shape == (3, 8, 8) and images.num_classes == 2 and len(images.test) == 4
    found = {i.tobytes(): label for i, label in zip(images.train, images.train_labels, strict=True)}
    found |= {i.tobytes(): label for i, label in zip(images.test, images.test_labels, strict=True)}
    assert [found[i.tobytes()] for i in colour] == [0] * 10  # classes in order of name
    assert [found[i.repeat(3, 2).tobytes()] for i in grey] == [1] * 10


def test_a_folder_with_its_own_splits_and_a_size(tmp_path):
    wide = np.concatenate([np.full((1, 8, 4, 1), 0), np.full((1, 8, 8, 1), 90), np.full((1, 8, 4, 1), 0)], 2)
    put_pictures(tmp_path / "train" / "x", wide.astype(np.uint8).repeat(3, 0), "webp")  # which has no grey
    put_pictures(tmp_path / "test" / "x", pictures(0, 2, 4))
    images = load_images(str(tmp_path), size=4)
    assert images.train.shape == (3, 4, 4, 3) and (images.test == pictures(0, 2, 4).repeat(3, 3)).all()
    assert (abs(images.train.astype(int)[:, :, 1:3] - 90) < 8).all()  # the middle is kept; WebP is lossy
    with pytest.raises(ValueError, match="in train and"):
        load_images(str(tmp_path))
    put_pictures(tmp_path / "train" / "y", pictures(0, 2, 5))
    with pytest.raises(ValueError, match=r"differ in size.*give one size"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(
    "name, mend",
    [
        ("mnist", "LEAPLM_DATA"),
        ("fashion-mnist", "LEAPLM_DATA"),
        ("cifar10", "LEAPLM_DATA"),
        ("nosuch", "none of digits, mnist"),
        ("./nosuch/folder", "no folder"),
        ("nobody/nothing", "did not load"),
    ],
)
def test_a_missing_set_is_one_line_with_the_mend(name, mend, tmp_path):
    with pytest.raises(ValueError, match=mend) as error:
        load_images(name, root=str(tmp_path))
    assert "\n" not in str(error.value)


def hub(monkeypatch, **splits):
    """The Hub holds these splits, as `datasets` gives them. splits: columns and their kinds."""
    import datasets

    made = {
        name: datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        for name, (columns, kinds) in splits.items()
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(made))


def test_a_set_of_the_hub_is_read_by_the_kinds_of_its_columns(monkeypatch):
    import datasets

    shots, kinds = (
        pictures(n=6, size=10, channels=3),
        {"shot": datasets.Image(), "what": datasets.ClassLabel(names=["a", "b"])},
    )
    told = {"shot": [Image.fromarray(x) for x in shots[:4]], "what": [0, 1, 1, 0]}
    held = {"shot": [Image.fromarray(x) for x in shots[4:]], "what": [1, 0]}
    hub(monkeypatch, train=(told, kinds), validation=(held, kinds))
    found = load_images("someone/shots")
    assert np.array_equal(found.train, shots[:4]) and found.train_labels.tolist() == [0, 1, 1, 0]
    assert np.array_equal(found.test, shots[4:]) and found.test_labels.tolist() == [1, 0]
    assert load_images("someone/shots", size=5).train.shape == (4, 5, 5, 3)


def test_a_set_of_the_hub_without_labels_has_one_class(monkeypatch):
    import datasets

    hub(monkeypatch, train=({"x": [Image.fromarray(x[..., 0]) for x in pictures(n=10)]}, {"x": datasets.Image()}))
    found = load_images("someone/shots")
    assert found.num_classes == 1 and found.shape == (1, 8, 8) and len(found.train) == 8 and len(found.test) == 2


def test_a_set_of_the_hub_without_images_or_without_training_says_so(monkeypatch):
    import datasets

    hub(monkeypatch, train=({"text": ["a"]}, {"text": datasets.Value("string")}))
    with pytest.raises(ValueError, match="no column of images, only text"):
        load_images("someone/words")
    hub(monkeypatch, test=({"x": [Image.fromarray(pictures()[0, ..., 0])]}, {"x": datasets.Image()}))
    with pytest.raises(ValueError, match="no split train, only test"):
        load_images("someone/shots")


def test_folders_that_hold_no_set_say_so(tmp_path):
    (tmp_path / "cifar10").mkdir()
    for name, line in ((str(tmp_path), "CLASS/NAME.png"), ("cifar10", "does not hold")):
        with pytest.raises(ValueError, match=line):
            load_images(name, root=str(tmp_path))
    (tmp_path / "cifar10" / "bad.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.png is no image"):
        load_images(str(tmp_path))
    with pytest.raises(ValueError, match="one size of its own"):
        load_images("digits", size=4)


@pytest.mark.parametrize("name, sizes", [("mnist", {60_000}), ("cifar10", {30_000, 50_000})])
def test_the_published_sets(name, sizes):
    root = os.environ.get("LEAPLM_DATA")
    if not root or not os.path.isdir(os.path.join(root, name)):
        pytest.skip(f"LEAPLM_DATA does not name a folder with {name}")
    images = load_images(name)
    assert len(images.train) in sizes and len(images.test) == 10_000 and images.num_classes == 10
    if name == "mnist":  # the published mean and deviation
        assert images.train.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
        assert images.train.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    else:
        assert (np.bincount(images.test_labels) == 1000).all()


def batches(n=10, batch_size=4, seed=3, flip=False):
    images = torch.arange(n * 2.0).reshape(n, 1, 1, 2)
    return ImageBatches(images, np.arange(n), batch_size, seed, flip)


def test_an_epoch_visits_every_image_once():
    data, walk = batches(), []
    for step in range(15):  # six epochs, whose ends fall inside batches
        walk += data.batch(step, torch.arange(4)).label.tolist()
    epochs = [walk[low : low + 10] for low in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    big = batches(n=3, batch_size=8).batch(0, torch.arange(8)).label.tolist()  # a batch of several epochs
    assert sorted(big[:3]) == sorted(big[3:6]) == [0, 1, 2]


def test_a_batch_is_the_same_however_it_is_cut():
    data = batches(flip=True)
    whole = data.batch(7, torch.arange(4))
    parts = [data.batch(7, torch.tensor(rows)) for rows in ([3, 1], [0], [2])]
    x_0, label = torch.cat([p.x_0 for p in parts]), torch.cat([p.label for p in parts])
    order = torch.tensor([3, 1, 0, 2])
    assert torch.equal(x_0, whole.x_0[order]) and torch.equal(label, whole.label[order])
    assert torch.equal(batches(flip=True).batch(7, torch.arange(4)).x_0, whole.x_0)
    assert (
        batches(seed=4).batch(7, torch.arange(4)).label.tolist() != batches().batch(7, torch.arange(4)).label.tolist()
    )


def test_half_of_the_images_are_mirrored_and_nothing_else_changes():
    data, still, mirrored = batches(flip=True), batches(), 0
    for step in range(100):
        a, b = data.batch(step, torch.arange(4)), still.batch(step, torch.arange(4))
        assert torch.equal(a.label, b.label)
        same, flipped = ((a.x_0 == other).flatten(1).all(1) for other in (b.x_0, b.x_0.flip(-1)))
        assert (same ^ flipped).all()
        mirrored += int(flipped.sum())
    assert abs(mirrored - 200) < 4 * 10  # four deviations of 400 fair coins


def test_a_batch_knows_its_size_and_moves():
    batch = batches().batch(0, torch.arange(3)).to(torch.device("cpu"))
    assert batch.size == 3 and batch.label.dtype == torch.int64 and batch.x_0.shape == (3, 1, 1, 2)
    with pytest.raises(ValueError, match="one label for each"):
        ImageBatches(torch.zeros(2, 1, 1, 1), np.zeros(3), 2, 0)
