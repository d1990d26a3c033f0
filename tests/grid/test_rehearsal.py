"""What would fail hours later in some cell fails before a run, in one line that says where."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import tiny_study

from roarlib.data import datasets
from roarlib.grid import preflight
from roarlib.grid.cells import Grid
from roarlib.grid.rehearsal import rehearse
from roarlib.study.params import InputError

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 10)
        {init}
    def forward(self, x):
        x = self.pool(self.relu(self.norm(self.conv(x)))).flatten(1)
        {forward}
        return self.head(x)

def net(classes, channels):
    {make}
    return model
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(code="", init="pass", forward="pass", make="model = Net()"):
        text = "import torch\nfrom torch import nn\n" + NET.format(init=init, forward=forward, make=make) + code
        (tmp_path / "mine.py").write_text(text)
        sys.modules.pop("mine", None)

    yield write
    sys.modules.pop("mine", None)


def rehearsed(**changes):
    said, study = [], tiny_study(**changes)
    rehearse(study, datasets.load(study), said.append)
    assert not list(study.folder.glob(".rehearsal*")) and not (study.folder / "01-train").exists()
    return said


def test_a_good_study_is_rehearsed_in_all_its_parts_and_leaves_nothing(outputs):
    estimators = ["paper", "oracle", "grad-blur", "grad-recursive", "captum:InputXGradient"]
    assert (
        rehearsed(
            estimators=estimators, units=["pixel", "value"], modes=["remove", "keep", "remove-imputed"], sanity_images=9
        )
        == []
    )


def test_a_layer_that_the_user_did_not_choose_is_named(outputs):
    names = ["gradcam", "gradcam-blur", "captum:LayerGradCam", "captum:GradientShap"]
    note = "explains 6, the last layer with spatial output"
    assert rehearsed(estimators=names) == [f"note: {name} {note}" for name in ("gradcam", "captum:LayerGradCam")]
    options = {name: {"layer": "4"} for name in names if "radCam" in name or name == "gradcam"}
    assert rehearsed(estimators=names, estimator_options=options) == []


@pytest.mark.parametrize(
    "more, says",
    [
        ("nn.functional.silu(x)", "1 silu"),
        ("nn.PReLU()(nn.ReLU6()(nn.ReLU6()(x)))", "2 hardtanh and 1 prelu"),
        ("nn.functional.gelu(x) * x.sigmoid()", "1 gelu"),
        ("x.tanh() * x.sigmoid()", None),
    ],
)
def test_guided_backprop_names_the_activations_that_it_leaves_alone(outputs, mine, more, says):
    mine(forward=f"x = {more}")
    ends = f"changes gradients at ReLUs alone, and mine:net also has {says}, through which they stay as they are"
    notes = [f"note: {name} {ends}" for name in ("gb", "captum:Deconvolution")]
    assert rehearsed(model="mine:net", estimators=["random", "gb", "gb-sg", "captum:Deconvolution"]) == notes * bool(
        says
    )


@pytest.mark.parametrize(
    "part, says",
    [
        (dict(forward="x = x if not self.training else {'out': x}"), "mine.py:13: TypeError"),
        (
            dict(forward="assert not self.training, '\\n\\n  only for tests\\n'"),
            "mine.py:12: AssertionError: only for tests",
        ),
        (dict(init="self.again = lambda x: x"), None),
        (dict(init="self.features = nn.Sequential(self.conv, self.norm)"), None),
    ],
)
def test_a_model_that_fails_late_fails_early(outputs, mine, part, says):
    mine(**part)
    if says is None:
        assert rehearsed(model="mine:net") == []
        return
    with pytest.raises(InputError) as error:
        rehearsed(model="mine:net")
    assert str(error.value).startswith("model mine:net fails in training: " + says) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "body, says",
    [
        ("return images.sum((1, 2))", "estimator mine:f gives scores of shape (8, 32)"),
        ("return images.sum(1).squeeze()", "estimator mine:f gives scores of shape (32, 32) for images of shape (1, 3"),
        ("return None", "estimator mine:f gives a NoneType, not a tensor of scores"),
        ("return images * 0", "estimator mine:f gives every input of an image the same score in "),
        ("raise ValueError('no\\nluck')", "estimator mine:f fails on a few images: mine.py:20: ValueError: no"),
        (
            "return model.layer4(images)",
            "estimator mine:f fails on a few images: mine.py:20: AttributeError: 'Net' object",
        ),
    ],
)
def test_a_bad_estimator_is_named_among_its_group(outputs, mine, body, says):
    mine(code=f"\ndef f(model, images, targets):\n    {body}\n")
    with pytest.raises(InputError) as error:
        rehearsed(model="mine:net", estimators=["random", "grad", "mine:f", "mine:f-sg"])
    assert str(error.value).startswith(says) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        "model = Net(); torch.manual_seed(3); [nn.init.normal_(p) for p in model.parameters()]",
        "model = Net(); [p.data.copy_(torch.linspace(0, 1, p.numel()).view_as(p)) for p in model.parameters()]",
        "g = torch.Generator().manual_seed(1)\n    model = Net()\n"
        "    [p.data.normal_(generator=g) for p in model.parameters()]",
    ],
)
def test_a_model_that_starts_trained_is_an_error(outputs, mine, make):
    mine(make=make)
    with pytest.raises(InputError, match="model mine:net starts with the same weights whatever the seed"):
        rehearsed(model="mine:net")


def test_a_part_that_starts_trained_and_a_generator_of_its_own_are_told(outputs, mine):
    mine(make="model = Net(); nn.init.constant_(model.conv.weight, 1); model.conv.weight.data[0] = 2")
    assert rehearsed(model="mine:net") == [
        "note: mine:net starts with the same conv.weight whatever the seed: not from scratch there"
    ]
    mine(
        make="model = Net(); model.head.weight.data.copy_(torch.randn(10, 4, generator=G))",
        code="\nG = torch.Generator()\n",
    )
    assert "head.weight from a generator of its own" in rehearsed(model="mine:net")[0]


@pytest.mark.parametrize(
    "part",
    [
        dict(init="self.parts = [nn.Linear(4, 4)]", forward="x = self.parts[0](x)"),
        dict(init="self.register_buffer('mix', torch.randn(4, 4), False)", forward="x = x @ self.mix"),
        dict(init="self.mix = torch.randn(4, 4)", forward="x = x @ self.mix"),
    ],
)
def test_a_network_that_its_state_dict_does_not_hold_is_an_error(outputs, mine, part):
    """What is stored and explained would be another one than the one trained."""
    mine(**part)
    with pytest.raises(InputError, match="mine:net keeps values outside of its state_dict"):
        rehearsed(model="mine:net")


@pytest.mark.parametrize("end, said", [("nn.Softmax(1)", "probabilities"), ("nn.LogSoftmax(1)", "log probabilities")])
def test_probabilities_are_an_error(outputs, mine, end, said):
    mine(make=f"model = nn.Sequential(Net(), {end})")
    with pytest.raises(InputError, match=f"mine:net gives {said}; logits are trained and explained"):
        rehearsed(model="mine:net")


@pytest.mark.parametrize("forward", ["x = x - x.mean(0)", "x = x / (x * x).sum().sqrt()"])
def test_logits_that_depend_on_other_images_are_an_error(outputs, mine, forward):
    mine(forward=forward)
    with pytest.raises(InputError, match="mine:net gives an image other logits beside other images"):
        rehearsed(model="mine:net")


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_logits_near_0_are_no_probabilities(outputs, name):
    assert not [line for line in rehearsed(model=name, estimators=["random", "grad"]) if "0 and 1" in line]


def test_nothing_hides_behind_weights_that_start_at_0(outputs, mine):
    mine(
        init="self.register_buffer('mix', torch.randn(4, 4), False); nn.init.zeros_(self.head.weight)",
        forward="x = x @ self.mix",
    )
    with pytest.raises(InputError, match="mine:net keeps values outside of its state_dict"):
        rehearsed(model="mine:net")
    mine(
        init="self.scale = nn.Parameter(torch.zeros(()))", forward="x = x + self.scale * nn.functional.dropout(x, 0.5)"
    )
    assert "mine:net draws at random in evaluation mode" in rehearsed(model="mine:net")[0]


def test_pixels_that_are_not_looked_at_and_equal_channels_are_told(outputs, mine):
    mine(init="self.conv = nn.Conv2d(3, 4, 12, 12)")
    assert rehearsed(model="mine:net") == [
        "note: mine:net does not look at 44% of the pixels: they can be removed at no cost"
    ]
    study = tiny_study(units=["value"])
    grey = datasets.load(study)
    for split in (grey.train, grey.test):
        split.images[:] = split.images[:, :1]
    said = []
    rehearse(study, grey, said.append)
    assert said == [
        "note: all channels are equal; with unit value, others still show what one has lost: take unit pixel"
    ]


def test_a_sigmoid_and_dropout_in_tests_are_told(outputs, mine):
    mine(make="model = nn.Sequential(Net(), nn.Sigmoid())")
    note = "note: mine:net gives values between 0 and 1; if it ends in a sigmoid, leave that out"
    assert rehearsed(model="mine:net") == [note]
    mine(forward="x = nn.functional.dropout(x, 0.5)")
    assert rehearsed(model="mine:net") == [
        "note: mine:net draws at random in evaluation mode (dropout without training=self.training?)"
    ]


def test_a_model_that_changes_its_input_is_an_error(outputs, mine):
    mine(make="model = nn.Sequential(Scaled(), Net())")
    (code := Path(sys.path[0], "mine.py")).write_text(
        code.read_text() + "\nclass Scaled(nn.Module):\n    def forward(self, x):\n        return x.mul_(2).sub_(1)\n"
    )
    with pytest.raises(InputError, match="mine:net changes the images that it is given"):
        rehearsed(model="mine:net")


def test_a_model_that_moves_in_evaluation_is_an_error_and_one_that_counts_is_not(outputs, mine):
    """An estimator was blamed for both, even ours."""
    seen = "self.register_buffer('seen', torch.zeros(()))"
    mine(init=seen, forward="self.seen += 1; x = x / self.seen")
    with pytest.raises(InputError, match="mine:net changes its seen in evaluation mode too"):
        rehearsed(model="mine:net")
    nan = "self.register_buffer('never', torch.tensor(float('nan')))"
    mine(init=f"{seen}; {nan}", forward="self.seen += 1")
    assert rehearsed(model="mine:net", estimators=["random", "grad", "gradcam"])[1:] == []  # names gradcam's layer


@pytest.mark.parametrize("dtype", ["bfloat16", "double"])
def test_logits_of_another_type_are_in_order(outputs, mine, dtype):
    mine(make=f"model = nn.Sequential(Net(), Cast())\n    Cast.dtype = torch.{dtype}")
    (code := Path(sys.path[0], "mine.py")).write_text(
        code.read_text() + "\nclass Cast(nn.Module):\n    def forward(self, x):\n        return x.to(self.dtype)\n"
    )
    assert rehearsed(model="mine:net", estimators=["random", "grad-sgsq", "gb", "ig"]) == []


@pytest.mark.parametrize(
    "body",
    [
        "model.train(); out = model(images); model.eval()",  # batch norms go on counting
        "model.head.weight.data.mul_(1.01)",
    ],
)
def test_an_estimator_that_changes_the_network_is_an_error(outputs, mine, body):
    mine(code=f"\ndef f(model, images, targets):\n    {body}\n    return images\n")
    with pytest.raises(InputError, match="mine:f: changes the network that is explained"):
        rehearsed(model="mine:net", estimators=["random", "mine:f"])


@pytest.mark.parametrize("kept", [True, False])
def test_an_estimator_that_keeps_its_first_network_is_an_error(outputs, mine, kept):
    """Wrappers are slow to build, so people keep them."""
    mine(
        code="\nKEPT = {}\ndef f(model, images, targets):\n"
        f"    net = KEPT.setdefault('net', model) if {kept} else model\n"
        "    logits = net(images.requires_grad_()).gather(1, targets[:, None])\n"
        "    return torch.autograd.grad(logits.sum(), images)[0].square()\n"
    )
    said = pytest.raises(InputError, match="estimator mine:f was given a second network and called the first")
    with said if kept else nullcontext():
        rehearsed(model="mine:net", estimators=["random", "mine:f", "mine:f-recursive"])


@pytest.mark.parametrize(
    "names, passes",
    [
        (["grad"], 1),
        (["grad-squared", "grad-sg"], 16),
        (["grad-sgsq"], 15),
        (["ig-squared"], 25),
        (["grad-sg-recursive"], 5 * 15),  # the base model's, and after each of four steps
    ],
)
def test_a_plan_counts_the_passes_that_the_listed_estimators_need(names, passes):
    study = tiny_study(estimators=names, noise_samples=15, ig_steps=25)
    cell = next(cell for cell in Grid(study).cells if cell.measure == "ranking")
    seconds = len(cell.rows) * preflight._cost(study, {"train": 900, "test": 100}, cell, {}, 0.0, 1.0)
    assert seconds == pytest.approx(1000 * passes, rel=1e-3)


def test_a_plan_knows_what_an_estimator_of_the_users_costs(outputs, mine):
    mine("import time\ndef slow(model, images, targets):\n    time.sleep(0.02 * len(images))\n    return images")
    study = tiny_study(estimators=["grad", "mine:slow", "mine:slow-sg"], noise_samples=15)
    spent = rehearse(study, datasets.load(study))
    assert list(spent) == ["mine.slow"] and spent["mine.slow"] > 16 * 0.02  # plainly and 15 times with noise
    cell = next(cell for cell in Grid(study).cells if cell.name.endswith("mine.slow"))
    seconds = len(cell.rows) * preflight._cost(study, {"train": 900, "test": 100}, cell, spent, 0.0, 1.0)
    assert seconds == pytest.approx(1000 * spent["mine.slow"], rel=1e-2)
