"""Captum's classes as estimators, `captum:Class`: run with options from YAML, or refused with the reason."""

import copy
import importlib.util
import inspect
import re
import warnings
from collections.abc import Callable

import captum.attr
import torch
from captum.attr._core import deep_lift, lrp
from torch import nn

from roarlib.engine import layers
from roarlib.study import own
from roarlib.study.params import InputError

HOOKING = ("GuidedBackprop", "Deconvolution", "GuidedGradCam")  # they see nn.ReLU modules only
NO_OPTIONS = ("self", "inputs", "target", "forward_func", "model", "kwargs", "return_convergence_delta")
WITH_SKLEARN = ("Lime", "KernelShap")
BATCHES = "permutes inputs within the batch, so that an image's scores would depend on those beside it"
REFUSED = {  # start of a class's name -> why it cannot be an estimator here
    "Neuron": "explains one hidden neuron, and not the class",
    "NoiseTunnel": "is a suffix here: take another class, with -sg, -sgsq or -var behind it",
    "FeaturePermutation": BATCHES,
    "LayerFeaturePermutation": BATCHES,
    "ShapleyValues": "takes a pass for every order of an image's inputs, too many; take ShapleyValueSampling",
    "LimeBase": "takes functions as options, which YAML cannot hold; take Lime",
    "DataLoaderAttribution": "explains a data set as a whole, and not its images",
    "LLM": "explains language models",
    "RemoteLLM": "explains language models",
}


def method(name: str) -> type:
    """The class behind `captum:Class`; InputError if there is none."""
    return own.load(name.replace("captum:", "captum.attr:"))


def attribute(kind, options, model, images, targets, *, baseline_of, **more):
    """Scores by a class of captum.attr: (N, C, H, W), or (N, 1, H, W) by one that explains a layer (`layers.find`).

    options: of the class and of its `attribute`. baseline_of: maps a word to baselines (`Explainer.baseline`); without
    the option `baselines`, train:20 for a class that needs several, else mean. more: further keywords, with which
    Captum's own result is returned. InputError for a class that cannot be an estimator, and for unknown options.
    """
    _refuse(kind, model, images[:1])
    made, takes = (inspect.signature(f).parameters for f in (kind.__init__, kind.attribute))
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}  # YAML has no tuples
    relevance, given = "LRP" in kind.__name__, model
    model = copy.deepcopy(model) if relevance else model  # if it fails, it leaves rules behind
    known = [k for k in (*made, *takes) if k not in NO_OPTIONS]
    if unknown := [k for k in options if k not in known]:
        raise InputError(f"captum:{kind.__name__} takes {', '.join(known)}; its options give {', '.join(unknown)}")
    if "layer" in made:
        options["layer"] = layers.find(model, images[:1], options.get("layer"))[1]
    if "baselines" in takes:
        many = takes["baselines"].default is inspect.Parameter.empty
        word = options.get("baselines", "train:20" if many else "mean")
        options["baselines"] = _baselines(kind, word, many, images, baseline_of) if isinstance(word, str) else word
    if "target" in takes:
        options["target"] = targets
    explainer = kind(model, **{k: options.pop(k) for k in made if k in options})
    found = _run(explainer, images, options | more)
    if relevance:
        ruled = (*lrp.SUPPORTED_LAYERS_WITH_RULES, *lrp.SUPPORTED_NON_LINEAR_LAYERS)
        layers.refuse_mixing(f"captum:{kind.__name__}", given, images[:1], ruled)
    if more or not issubclass(kind, captum.attr.LayerAttribution):
        return found
    return layers.enlarged(f"captum:{kind.__name__}: the layer", found, images)


def _refuse(kind: type, model: nn.Module, image: torch.Tensor) -> None:
    name = kind.__name__
    if reason := next((why for start, why in REFUSED.items() if name.startswith(start)), ""):
        raise InputError(f"captum:{name} {reason}")
    if not hasattr(kind, "attribute"):
        raise InputError(f"captum:{name} is no method of attribution")
    if name in WITH_SKLEARN and not importlib.util.find_spec("sklearn"):
        raise InputError(f"captum:{name} needs scikit-learn: pip install scikit-learn")
    if name in HOOKING and not layers.relus_are_modules(model, image):
        raise InputError(
            f"captum:{name} hooks nn.ReLU modules, and this model has other ReLUs, or none: it would be the "
            "plain gradient there; gb guides them all"
        )
    if "DeepLift" in name:
        ruled = tuple(deep_lift.SUPPORTED_NON_LINEAR)
        layers.refuse_mixing(f"captum:{name}", model, image, ruled, ruled, bent=True)


def _run(explainer, images: torch.Tensor, options: dict):
    with warnings.catch_warnings():
        noise = "Input Tensor 0 did not already", "Setting (forward, )?backward hooks", "You are providing multiple"
        for said in noise:
            warnings.filterwarnings("ignore", said)
        try:
            return explainer.attribute(images, **options)
        except TypeError as error:
            if lacks := re.search(r"(\w+)'> has no rule defined", str(error)):
                name = type(explainer).__name__
                raise InputError(f"captum:{name} has no rule for modules of type {lacks[1]}; lrp has more") from None
            raise


def _baselines(kind: type, word: str, many: bool, images: torch.Tensor, baseline_of: Callable) -> torch.Tensor:
    """Baselines (1, C, H, W), or (B, C, H, W) for the classes that take several."""
    found = torch.as_tensor(baseline_of(word)).to(images)
    count = len(found) if found.ndim == 4 else 1
    if count > 1 and not many:
        raise InputError(f"captum:{kind.__name__} takes one baseline, mean, black or grey, and not {word}")
    if count == 1 and "DeepLiftShap" in kind.__name__:
        raise InputError(f"captum:{kind.__name__} takes several baselines, such as train:20, and not {word}")
    return found.broadcast_to(count, *images.shape[1:])


def gap(
    name: str, options: dict, model: nn.Module, images: torch.Tensor, targets: torch.Tensor, baseline_of: Callable
) -> float | None:
    """By how much a method of Captum's that promises completeness misses it; None for one that does not promise it.

    Median over images of |mean over an image's baselines or samples of sum of scores - (f(x) - f(baseline))|, as a
    share of the median |f(x) - f(0)|.
    """
    kind = method(name) if name.startswith("captum:") else None
    if kind is None or "return_convergence_delta" not in inspect.signature(kind.attribute).parameters:
        return None
    more = {"baseline_of": baseline_of, "return_convergence_delta": True}
    delta = attribute(kind, options, model, images, targets, **more)[1].reshape(len(images), -1).mean(1)
    with torch.no_grad():
        f = model(images) - model(torch.zeros_like(images))
    return float(delta.abs().median() / f.gather(1, targets[:, None]).abs().median().clamp(min=1e-12))


def table(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> list[tuple[str, str]]:
    """Every class of captum.attr, run on these images (at least two) with small options: (class, works or why not)."""
    small, rows = {"n_steps": 2, "n_samples": 2, "sliding_window_shapes": tuple(images.shape[1:])}, []
    for name in captum.attr.__all__:
        if not inspect.isclass(kind := getattr(captum.attr, name)):
            continue
        takes = inspect.signature(kind.attribute).parameters if hasattr(kind, "attribute") else ()
        options, answer = {k: v for k, v in small.items() if k in takes}, "works"
        try:
            found = attribute(
                kind, options, model, images, targets, baseline_of=lambda word: images if word == "train:20" else 0.0
            )
            answer = answer if found.isfinite().all() else "gives scores that are not finite"
        except InputError as error:
            answer = str(error).removeprefix(f"captum:{name} ")
        except Exception as error:  # Captum's code, on any model
            answer = own.said(error)
        rows.append((name, answer))
    return rows
