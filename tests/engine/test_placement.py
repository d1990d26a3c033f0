"""On a pretended GPU (`pretend`) every function of the engine gives the processor's numbers, and no devices are mixed.

Not reached, as it needs a real one: CUDA's kernels and their rounding; its memory, what is free, taken, and too little
(`test_rank` and `test_train` make that error up); its generator; copies in flight (that what streams is pinned is seen
here); TF32; autocast's casts, so that bfloat16 is float32 here; fused attention; more than one GPU. `NOT_REACHED` names
functions that have no part in what happens on the device.
"""

import copy
import dataclasses
import functools
import importlib
import inspect
import os
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import FunctionType
from unittest import mock

import captum.attr
import numpy as np
import pytest
import torch
from conftest import Net, random_data, tiny_study
from pretend import MIXED, A, Held, register
from torch.utils._pytree import tree_leaves

import roarlib.engine
from roarlib.engine import draws, estimators, from_captum, impute, models, randomise, rank, recursive, store, train
from roarlib.engine.augment import augment
from roarlib.engine.degrade import Degraded, image_ids
from roarlib.engine.rank import Explainer
from roarlib.study import names, rankings
from roarlib.study.files import outputs
from roarlib.study.results import base_file

DATA = random_data(train=16, test=8, shape=(3, 8, 8))
OTHER = dataclasses.replace(DATA, scaled_by=(np.float32([0.4] * 3), DATA.std))  # what is removed is not 0 then
RANKS = {s: np.random.default_rng(1).integers(0, 100, (n, 1, 8, 8), np.uint8) for s, n in (("train", 16), ("test", 8))}
NOT_REACHED = """
    degrade.as_seen degrade.placed from_captum.table rank.batch_size: pictures, a sentence, loops and numbers
    estimators.register maps.check maps.refuse_variants maps._order store._checkpoint: names and files
    zoo.from_timm zoo._patches_fit zoo.give_logits models.resnet18: models, before they are moved
    layers.Guided.guide: called by torch, in a thread of its own
"""
CASES, REACHED, RUN = {}, set(), set()  # CASES: name -> function of a device's name that gives tensors and arrays


def case(name, *parameters):
    """Enters a function as one case, or as one for each parameter."""

    def enter(function):
        for p in parameters or [None]:
            words = "" if p is None else p if isinstance(p, str) else "-".join(map(str, p))
            CASES[f"{name} {words}".strip()] = lambda device, p=p: function(device, *([] if p is None else [p]))
        return function

    return enter


def study_on(device, **changes):
    return tiny_study(**{"device": device, "batch_size": 8, "noise_samples": 2, "ig_steps": 2} | changes)


def built(device, name="resnet-tiny", side=8):
    torch.manual_seed(1)
    return models.build(name, 4, (3, side, side)).to(device).eval()


def inputs(device, side=8):
    torch.manual_seed(0)
    return torch.randn(2, 3, side, side).to(device), torch.tensor([1, 2]).to(device)


@functools.cache
def folded_on(device, model):
    classes = {split: np.arange(len(DATA.split(split))) % 4 for split in RANKS}
    return Explainer(study_on(device, model=model), DATA, built(device, model), classes, 16)


def explainer_on(device, model="resnet-tiny", **changes):
    explainer = copy.copy(folded_on(device, model))
    explainer.study = study_on(device, model=model, **changes)
    return explainer


@case("model", "resnet-tiny", "resnet-tiny-strided", "resnet9", "vit-tiny", "squeezenet1_1")
def _(device, name):
    side = 32 if name == "squeezenet1_1" else 8
    model, (x, targets) = built(device, name, side), inputs(device, side)
    return model(x), [estimators.grad(m, x, targets) for m in (model, models.folded(model, x))]


@case("draws")
def _(device):
    ids = image_ids("test", slice(0, 3), torch.device(device))
    return draws.uniform(0, 1, ids, 5), draws.normal(0, ids, 2, (3, 4))


@case("augment", "none", "crop", "crop-flip", "area-flip")
def _(device, kind):
    x, fill = inputs(device)[0], torch.tensor([0.5, 1, 2]).to(device)
    return [augment(x, kind, torch.Generator().manual_seed(0), f) for f in (None, fill)]


@case("degrade", *((mode, room) for mode in names.MODES for room in ("resident", "streamed")))
def _(device, p):
    room = None if p[1] == "resident" else 0
    sets = DATA, OTHER, dataclasses.replace(DATA, image_mean=True)
    made = [Degraded("train", data, torch.device(device), RANKS["train"], 40, p[0], room) for data in sets]
    return [list(images.batches([slice(0, 5), torch.tensor([7, 2, 9])])) for images in made]


@case("impute")
def _(device):
    x, gone = inputs(device)[0], (torch.from_numpy(RANKS["train"][:2]) < 60).to(device)
    fill, ids = torch.zeros(3).to(device), torch.arange(2).to(device)
    return impute.linear(x, gone), impute.noisy_linear(x, gone, fill, 0.1 * (fill + 1), 0, ids)


FAMILIES = [[f"{b}-{e}" if e else b for e in names.ENSEMBLES] for b in names.BASES]
READY = [*names.READY, "gradcam-var", "random", "sobel", "oracle", "anti-oracle", "maps:mine", "test_placement:numpys"]
VARIANTS = [f"grad-{variant}" for variant in names.VARIANTS if variant != "recursive"]
FEW = {"rise": {"samples": 3}, "occlusion": {"window": 4}}  # options that make them fast


def numpys(model, images, targets):
    """Anybody's estimator: a NumPy array of one score a pixel."""
    return images.detach().cpu().numpy()[:, 0]


@case("scores", *FAMILIES, *([name] for name in READY), VARIANTS)
def _(device, wanted):
    for split in RANKS:
        (outputs() / "mine").mkdir(parents=True, exist_ok=True)
        np.save(outputs() / "mine" / f"{split}.npy", DATA.split(split).images.astype(np.float32))
    changes = {"estimator_options": {b: FEW[b] for b in wanted if b in FEW}, "files_dir": str(outputs())}
    model = "vit-tiny" if "rollout" in wanted else "resnet-tiny"
    explainer = explainer_on(device, model, estimators=wanted, **changes)
    return explainer.scores("train", slice(0, 3), wanted), explainer.rankings("test", slice(0, 2), wanted, "pixel")


CAPTUMS = [n for n in captum.attr.__all__ if hasattr(getattr(captum.attr, n), "attribute")]


@case("captum", *(n for n in CAPTUMS if not n.startswith(tuple(from_captum.REFUSED)) and "LRP" not in n))
def _(device, name):
    kind, (x, targets), options = getattr(captum.attr, name), inputs(device), {}
    takes = inspect.signature(kind.attribute).parameters
    quarters = (torch.arange(8) // 4 * 2)[:, None] + torch.arange(8) // 4
    small = {"n_steps": 2, "n_samples": 2, "sliding_window_shapes": (3, 8, 8), "feature_mask": quarters.to(device)}
    small["layer_mask"] = torch.zeros(1, 1, 1, 1, dtype=torch.int64).to(device)
    options = {key: value for key, value in small.items() if key in takes}

    def baseline(word):
        return x if word == "train:20" else 0.0

    with draws.seeded(5):
        return from_captum.attribute(kind, options, Net().float().to(device), x, targets, baseline_of=baseline)


@case("gap, layer and unguided")
def _(device):
    explainer = explainer_on(device)
    layer, others = explainer.layer("gradcam"), explainer.unguided()
    return explainer.gap("captum:DeepLift"), len(layer), len(others), explainer.baseline("black")


@case("randomise")
def _(device):
    explainer = explainer_on(device)
    store.make(explainer, ["grad"])
    return [found for _, found in randomise.compare(explainer, ["grad"], 4, ["top0", list(names.DEPTHS)[-1]])]


@case("train", *(("sgd", mode, "none", 0) for mode in names.MODES), ("adamw", "remove", "area-flip", 3))
def _(device, p):
    optimiser, mode, kind, micro = p
    study = study_on(device, optimiser=optimiser, augment=kind, micro_batch=micro, flip_average=True)
    model = train.train(study, DATA, 0, RANKS["train"], 50, mode)
    return list(model.parameters()), train.tested(study, model, DATA, RANKS["test"], 50, mode)["accuracy"]


@case("base")
def _(device):
    study = study_on(device, memory_gb=1e-9)
    classes = train.save_base(study, DATA, train.base_model(study, DATA))
    model, again = train.load_base(study, DATA)
    brought = study_on(device, base_weights=str(base_file(study, "model.safetensors")))
    return classes, again, list(model.parameters()), list(train.base_model(brought, DATA).parameters())


@case("rank", "grad-var", "random", "grad-squared-recursive")
def _(device, name):
    again = name.endswith("recursive")
    explainer = explainer_on(device, units=["pixel"] if again else ["pixel", "value"], recursive_steps=[50])
    (recursive.make if again else store.make)(explainer, [name])
    made = [rankings.load(explainer.study, name, u, s) for u in explainer.study.units for s in RANKS]
    doubles = torch.rand(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    return made, rank.rank(doubles, torch.arange(2).to(device), 0)


def both(name, folder):
    """What a case gives on the processor and on the pretended GPU, as arrays and numbers, and how much was pinned."""

    def call(device):
        with mock.patch.dict(os.environ, ROAR_OUTPUTS=str(folder / device)):
            leaves = [t.held if isinstance(t, Held) else t for t in tree_leaves(CASES[name](device))]
        return [t.detach().numpy() if isinstance(t, torch.Tensor) else t for t in leaves]

    def note(frame, event, argument):
        if event == "call":
            REACHED.add(frame.f_code)

    pinned, here = [], call("cpu")
    with mock.patch.object(torch.Tensor, "pin_memory", lambda array: pinned.append(array) or array):
        sys.setprofile(note)
        try:
            return here, call("gpu"), len(pinned)
        finally:
            sys.setprofile(None)


@pytest.fixture(scope="module")
def apart():
    """A process of its own, where torch knows the pretended GPU from the start: before its first gradient it must."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=begin) as pool:
        yield pool


def begin():
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)  # the processor's fused attention rounds otherwise
    register()


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_gives_the_processors_numbers(name, tmp_path, apart):
    wanted, found, pinned = apart.submit(both, name, tmp_path).result()
    assert len(found) == len(wanted) > 0
    for there, here in zip(found, wanted, strict=True):
        assert type(there) is type(here)
        np.testing.assert_array_equal(there, here)
    assert pinned == 12 or "streamed" not in name  # images and ranks of two batches, of three sets
    RUN.add(name)


def missing():
    """Functions of the engine that no case has called on the pretended GPU."""
    found = []
    for info in pkgutil.iter_modules(roarlib.engine.__path__):
        module = importlib.import_module(f"roarlib.engine.{info.name}")
        for owner in [module, *(v for v in vars(module).values() if isinstance(v, type))]:
            for f in vars(owner).values():
                f = inspect.unwrap(f) if isinstance(f, FunctionType) else f
                if isinstance(f, FunctionType) and f.__module__ == module.__name__ and f.__code__ not in REACHED:
                    found.append(f"{info.name}.{f.__qualname__}")
    return [name for name in found if "__" not in name]  # what a dataclass brings


def test_no_function_of_the_engine_is_left_out(apart):
    """A new one needs a case above."""
    if RUN != set(CASES):
        pytest.skip("needs every case before it to pass")
    named = [word.strip(":") for word in NOT_REACHED.split() if "." in word]
    assert sorted(apart.submit(missing).result()) == sorted(named)


def mixed(what):
    MIXED[what][0](A.to("gpu"))


@pytest.mark.parametrize("what", MIXED)
def test_mixing_devices_fails_as_on_a_gpu(what, apart):
    problem = apart.submit(mixed, what).exception()
    assert (problem is None) == MIXED[what][1] and isinstance(problem, RuntimeError | TypeError | None), problem


def mistaken():
    with mock.patch.object(draws, "_shift", lambda z, bits: z >> torch.full(z.shape, bits)):
        CASES["draws"]("gpu")


def test_a_function_that_forgets_the_device_is_found(apart):
    with pytest.raises(RuntimeError, match="both devices"):
        apart.submit(mistaken).result()
