import inspect
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

import robustlit.data
from robustlit.data import MNIST, DataError, load_mnist
from robustlit.data.base import ClassificationData
from robustlit.training import BaseCNNClassifier


def all_indices(loader):
    return torch.cat([index for _, _, index in loader])


def test_mnist_without_a_trainer():
    module = MNIST()
    module.setup("test")
    x, y, index = next(iter(module.test_dataloader()))
    images, labels = load_mnist()[2:]
    assert torch.equal(x, images[:500].float().div(255))
    assert torch.equal(y, labels[:500])
    assert torch.equal(index, torch.arange(500))
    assert (module.name, module.num_classes, module.in_chans, module.image_size) == ("mnist", 10, 1, 28)
    assert torch.equal(all_indices(module.test_dataloader()), torch.arange(10000))
    assert len(module.train_dataloader()) == -(-58000 // 128)


def test_validation_is_held_out_and_stratified():
    module = MNIST(val_size=2000)
    val, train = all_indices(module.val_dataloader()), all_indices(module.train_dataloader())
    assert len(val) == 2000
    assert torch.equal(torch.cat([val, train]).sort().values, torch.arange(60000))
    labels = load_mnist()[1]
    share = labels.bincount() / 60000
    assert (labels[val].bincount() - share * 2000).abs().max() <= 1
    assert torch.equal(val, val.sort().values)


def test_validation_depends_on_its_size_and_the_data_seed_alone():
    val = MNIST(val_size=300).train_val_indices[1]
    for other in (MNIST(val_size=300, train_size=1000), MNIST(val_size=300, shuffle_seed=7, batch_size=32)):
        assert torch.equal(other.train_val_indices[1], val)
    assert not torch.equal(MNIST(val_size=300, seed=1).train_val_indices[1], val)
    torch.manual_seed(5)
    assert torch.equal(MNIST(val_size=300).train_val_indices[1], val)


def test_shuffle_seed_changes_the_order_and_not_the_examples():
    one, two, again = (all_indices(MNIST(train_size=500, shuffle_seed=s).train_dataloader()) for s in (0, 1, 0))
    assert not torch.equal(one, two)
    assert torch.equal(one, again)
    assert torch.equal(one.sort().values, two.sort().values)


def test_excerpts_are_stratified_and_sorted():
    module = MNIST(train_size=0.1, val_size=0.05, test_size=100)
    train, val = module.train_val_indices
    assert (len(train), len(val), len(module.test_indices)) == (5700, 3000, 100)
    assert not set(train.tolist()) & set(val.tolist())
    labels = load_mnist()[3]
    assert (labels[module.test_indices].bincount() - labels.bincount() / 100).abs().max() <= 1
    for indices in (train, val, module.test_indices):
        assert (indices.diff() > 0).all()
    assert len(MNIST(train_size=58000).train_val_indices[0]) == 58000


@pytest.mark.parametrize("size", [0, -5, 1.0, 0.0, 1.5, True, None])
def test_bad_sizes_are_refused_at_once(size):
    for what in ("train_size", "val_size", "test_size") if size is not None else ("val_size",):
        with pytest.raises(ValueError, match=rf"{what} must be .*got {size}"):
            MNIST(**{what: size})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"test_size": 10001}, r"test_size=10001 asks for 10001 of 10000"),
        ({"train_size": 58001}, r"train_size=58001 asks for 58001 of 58000"),
        ({"val_size": 3}, r"val_size=3 asks for 3"),
        ({"val_size": 60000}, r"val_size=60000 leaves no example to train on"),
    ],
)
def test_sizes_that_the_data_do_not_allow(sizes, message):
    with pytest.raises(ValueError, match=message):
        MNIST(**sizes).setup()


def test_test_tensors_are_the_test_batches():
    module = MNIST(test_size=70, eval_batch_size=32)
    for whole, parts in zip(module.tensors("test"), zip(*module.test_dataloader(), strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_tensors_of_a_split_are_its_examples_unaugmented_and_in_shares():
    images, labels, *_ = load_mnist()
    module = MNIST(train_size=500, val_size=200, augment=True)
    x, y, index = module.tensors("train")
    assert torch.equal(index, module.train_val_indices[0])
    assert torch.equal(x, images[index].float().div(255))
    assert torch.equal(y, labels[index])
    assert torch.equal(module.tensors("val")[2], module.train_val_indices[1])
    _, fewer, chosen = module.tensors("train", 100)
    assert {*chosen.tolist()} <= {*index.tolist()}
    assert fewer.bincount().tolist() == pytest.approx((y.bincount() / 5).tolist(), abs=1)
    assert torch.equal(module.tensors("train", 100)[2], chosen)
    assert [len(module.tensors("val", size)[0]) for size in (195, 200, 900)] == [195, 200, 200]


def test_tensors_of_no_split_are_refused():
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'training'"):
        MNIST().tensors("training")
    with pytest.raises(ValueError, match="size=3 asks for 3"):
        MNIST().tensors("train", 3)


def test_augment_touches_training_batches_only():
    images = load_mnist()[0]
    module = MNIST(train_size=200, val_size=100, augment=True)
    for loader, unchanged in ((module.train_dataloader(), False), (module.val_dataloader(), True)):
        x, _, index = next(iter(loader))
        assert torch.equal(x, images[index].float().div(255)) == unchanged


def test_setup_twice_reads_once():
    class Counted(MNIST):
        reads = 0

        def read(self):
            self.reads += 1
            return super().read()

    module = Counted()
    for stage in ("fit", "test", "fit", None):
        module.setup(stage)
    assert module.reads == 1


def test_labels_out_of_range_are_refused():
    class Wrong(MNIST):
        num_classes = 9

    with pytest.raises(DataError, match=r"training labels must be in \[0, 9\), got 9"):
        Wrong().setup("fit")


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_trainer_gives_each_process_its_share(world_size):
    test, train = [], []
    for rank in range(world_size):
        module = MNIST(test_size=100, eval_batch_size=20, train_size=50, val_size=100)
        device = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=device)
        test.append(all_indices(module.test_dataloader()))
        train.append(all_indices(module.train_dataloader()))
        assert len(module.tensors("test")[0]) == 100
    assert torch.equal(torch.cat(test).sort().values, MNIST(test_size=100).test_indices)
    assert {len(indices) for indices in train} == {50 // world_size}
    assert len(set(torch.cat(train).tolist())) == 50 // world_size * world_size


# --- in Lightning


class Recorder(pl.LightningModule):
    """A linear net that remembers the examples it trained on."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(784, 10)
        self.seen = []

    def training_step(self, batch):
        x, y, index = batch
        self.seen.append(index.tolist())
        return torch.nn.functional.cross_entropy(self.net(x.flatten(1)), y)

    def validation_step(self, batch):
        self.log("loss", batch[0].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **arguments):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    settings = {"accelerator": "cpu", "num_sanity_val_steps": 0, "default_root_dir": folder, "max_epochs": 3}
    return pl.Trainer(**(quiet | settings | arguments))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "when", [pytest.param({"every_n_train_steps": 1}, marks=pytest.mark.slow), {"every_n_epochs": 1}]
)
def test_lightning_resumes_from_any_checkpoint_with_the_batches_left(tmp_path, when):
    def data():
        return MNIST(train_size=100, val_size=50, batch_size=32)

    pl.seed_everything(0)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, **when)
    whole = Recorder()
    trainer(tmp_path, callbacks=[keep], enable_checkpointing=True).fit(whole, data())
    assert len(whole.seen) == 12
    assert [len(batch) for batch in whole.seen] == [32, 32, 32, 4] * 3
    first, second = (list(chain(*whole.seen[start : start + 4])) for start in (0, 4))
    assert sorted(first) == sorted(second)
    assert first != second

    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == (12 if "every_n_train_steps" in when else 3)
    for checkpoint in checkpoints:
        step = int(checkpoint.stem.split("step=")[1])
        resumed = Recorder()
        trainer(tmp_path).fit(resumed, data(), ckpt_path=checkpoint)
        assert resumed.seen == whole.seen[step:], checkpoint.name
        assert torch.equal(resumed.net.weight, whole.net.weight)


# --- recipes


def test_recipes_spell_out_the_defaults():
    folder = Path(__file__).parents[2] / "recipes" / "data"
    files = sorted(folder.glob("*.yaml"))
    assert [file.stem for file in files] == ["cifar10", "cifar100", "fashion_mnist", "image_folder", "mnist", "svhn"]
    for file in files:
        recipe = OmegaConf.merge({"seed": 0}, OmegaConf.load(file))
        values = OmegaConf.to_container(recipe, resolve=True)
        cls = getattr(robustlit.data, values.pop("_target_").removeprefix("robustlit.data."))
        values.pop("seed")
        parameters = {**inspect.signature(ClassificationData).parameters, **inspect.signature(cls).parameters}
        defaults = {n: p.default for n, p in parameters.items() if n not in ("seed", "settings")}
        defaults |= {"val_size": 0.1} if file.stem == "image_folder" else {}
        assert values.keys() == defaults.keys()
        for name, default in defaults.items():
            if default is not inspect.Parameter.empty:
                assert values[name] == default, (file.name, name)
        with pytest.raises(TypeError, match="unexpected keyword argument 'val_siz'"):
            cls(**{name: values[name] for name in ("root", "image_size") if name in values}, val_siz=3)


@pytest.mark.parametrize("augment", [False, True])
def test_overfitting_sees_the_same_batches_in_every_epoch(augment: bool):
    class Seen(pl.Callback):
        def __init__(self):
            self.batches = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.batches.append(batch[0].clone())

    seen = Seen()
    data = MNIST(train_size=200, val_size=100, test_size=20, batch_size=32, augment=augment)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=3, overfit_batches=2, accelerator="cpu", callbacks=[seen], **quiet)
    trainer.fit(BaseCNNClassifier(), datamodule=data)
    assert len(seen.batches) == 6
    for later in (seen.batches[2:4], seen.batches[4:]):
        assert all(torch.equal(a, b) for a, b in zip(seen.batches[:2], later, strict=True))
    assert not torch.equal(*seen.batches[:2])


def test_predicting_runs_over_the_test_images():
    data = MNIST(test_size=30, eval_batch_size=20)
    assert [len(y) for _, y, _ in data.predict_dataloader()] == [20, 10]
