"""Names to networks: registered, torchvision's, timm's, the user's own, and wrong ones."""

import sys
import urllib.error

import pytest
import torch
from torch import nn

from fastprune.errors import ConfigError, FastpruneError, WeightsError
from fastprune.models import build, list_networks, resolve

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

USER_FILE = '''
import dataclasses
import helper_beside_it
from torch import nn

@dataclasses.dataclass
class Widths:
    first: int = 4

class Net(nn.Module):
    """A small one."""
    def __init__(self, width=4):
        super().__init__()
        self.head = nn.Linear(width, 2)

def with_classes(num_classes=3, bias=True):
    """With a head.

    More about it.
    """
    import helper_beside_it
    return nn.Linear(Widths().first, num_classes, bias=bias)

def anything(**options):
    return nn.Linear(4, options.get("num_classes", 5))

def not_a_module():
    return 3

def faulty():
    return {}["missing"]

ready = nn.Linear(2, 2)
number = 3
'''


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "helper_beside_it.py").write_text("")
    path = tmp_path / "nets.py"
    path.write_text(USER_FILE)
    yield path
    sys.modules.pop("helper_beside_it", None)


@pytest.fixture
def without_torchvision(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test_bare_torchvision_name():
    network = resolve("resnet50")
    assert network.name == resolve("torchvision:resnet50").name == "torchvision:resnet50"
    assert (network.input_shape, network.num_classes) == ((3, 224, 224), 1000)
    assert network.normalization == IMAGENET
    assert network.published[0] == "DEFAULT"
    assert "IMAGENET1K_V2" in network.published


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [("inception_v3", 299, 0.485), ("efficientnet_v2_l", 480, 0.5), ("vit_h_14", 224, 0.485)],
)
def test_torchvision_networks_with_their_own_input(name, size, mean):
    network = resolve(name)
    assert network.input_shape == (3, size, size)
    assert network.normalization[0][0] == mean


def test_torchvision_options_and_classes():
    with torch.device("meta"):
        model = build("mobilenet_v2", num_classes=7, width_mult=0.5)
        googlenet = build("googlenet")
    assert model.classifier[1].out_features == 7
    assert googlenet.aux1 is None
    with pytest.raises(ConfigError, match=r"torchvision:resnet18: .*widht"):
        build("resnet18", widht=2)


def test_every_torchvision_network_is_listed():
    names = [network.name for network in list_networks(torchvision=True)]
    assert "torchvision:swin_t" in names
    assert "resnet20_cifar" in names
    assert not any("segmentation" in name or "raft" in name for name in names)


def test_a_registered_name_needs_no_torchvision(without_torchvision):
    without_torchvision.setitem(sys.modules, "torchvision", None)
    assert isinstance(build("resnet20_cifar"), nn.Module)


def test_torchvision_is_not_installed(without_torchvision):
    without_torchvision.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        FastpruneError, match=r"torchvision is not installed; .*pip install torchvision"
    ):
        resolve("torchvision:resnet50")
    with pytest.raises(
        FastpruneError, match=r"unknown name 'resnet50'.*torchvision is not installed"
    ):
        resolve("resnet50")


def test_torchvision_of_another_torch(without_torchvision, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    without_torchvision.syspath_prepend(tmp_path)
    with pytest.raises(FastpruneError) as caught:
        resolve("torchvision:resnet50")
    message = str(caught.value)
    assert "operator torchvision::nms does not exist" in message
    assert torch.__version__ in message
    assert "pip install --upgrade --force-reinstall torch torchvision" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet56_cifr", r"unknown name 'resnet56_cifr'; did you mean 'resnet56_cifar'"),
        ("resnet5O", r"unknown name 'resnet5O'; did you mean .*'resnet50'"),
        ("", r"unknown name ''"),
        ("torchvision:resnet5O", r"torchvision has no classification network .*'resnet50'"),
        ("torchvision:raft_large", r"torchvision has no classification network 'raft_large'"),
        ("torchvison:resnet50", r"no module 'torchvison'; did you mean 'torchvision'"),
        ("my net:build", r"expected package.module:function or path/to/file.py:function"),
        ("no_such_package.nets:net", r"there is no module 'no_such_package'"),
        ("json:nothing", r"json has no function 'nothing'"),
        ("json:", r"expected a function's name behind the colon"),
        ("net.py", r"expected net.py:FUNCTION"),
        ("no/such/file.py:net", r"there is no file .*no/such/file.py"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(FastpruneError, match=message) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_published_weights_that_do_not_exist():
    with pytest.raises(
        WeightsError, match=r"'IMAGENET1K_V9': neither a file nor .*'IMAGENET1K_V1'"
    ):
        build("resnet18", weights="IMAGENET1K_V9")


def test_published_weights_offline(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    from torchvision.models import resnet

    monkeypatch.setattr(resnet.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(WeightsError, match=r"DEFAULT of torchvision:resnet18 .*no route to host"):
        build("resnet18", weights="DEFAULT")


def test_published_weights_are_for_their_own_classes():
    with pytest.raises(WeightsError, match=r"are for 1000 classes, got num_classes=10"):
        build("resnet18", weights="DEFAULT", num_classes=10)


def test_timm_network():
    pytest.importorskip("timm", reason="timm is optional")
    network = resolve("timm:resnet10t")
    assert network.name == "timm:resnet10t"
    assert network.num_classes == 1000
    with torch.device("meta"):
        assert network.build(5).num_classes == 5
    with pytest.raises(FastpruneError, match=r"timm has no network 'resnet10x'; did you mean"):
        resolve("timm:resnet10x")
    with pytest.raises(ConfigError, match=r"timm:resnet10t: .*widht"):
        network.build(widht=2)
    with pytest.raises(WeightsError, match="are for 1000 classes"):
        build("timm:resnet10t", weights="DEFAULT", num_classes=10)


def test_timm_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FastpruneError, match=r"timm is not installed; .*pip install timm"):
        resolve("timm:resnet50")


def test_function_of_a_package():
    network = resolve("torch.nn:Linear")
    assert network.name == "torch.nn:Linear"
    assert network.input_shape is None
    assert network.build(in_features=2, out_features=3).out_features == 3


def test_function_of_a_package_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "package_of_a_user.py").write_text(
        "from torch import nn\ndef net(): return nn.Linear(2, 2)"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(build("package_of_a_user:net"), nn.Linear)
    assert str(tmp_path) not in sys.path
    sys.modules.pop("package_of_a_user")


def test_function_of_a_file(user_file, monkeypatch):
    monkeypatch.chdir(user_file.parent)
    network = resolve("nets.py:with_classes")
    assert network.name == f"{user_file}:with_classes"
    assert network.summary == "With a head."
    assert network.build().out_features == 3
    assert network.build(10, bias=False).out_features == 10
    assert str(user_file.parent) not in sys.path


def test_class_of_a_file_that_takes_no_classes(user_file):
    model = build(f"{user_file}:Net", num_classes=10)
    assert model.head.out_features == 2
    assert build(f"{user_file}:anything", num_classes=9).out_features == 9


def test_an_unchanged_file_is_run_once(user_file):
    first = type(build(f"{user_file}:Net"))
    assert type(build(f"{user_file}:Net")) is first


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("with_clases", {}, r"nets.py has no function 'with_clases'; did you mean 'with_classes'"),
        ("ready", {}, r"nets.py:ready is a Linear; expected a function or class"),
        ("number", {}, r"nets.py:number is a int"),
        ("not_a_module", {}, r"nets.py:not_a_module gave a int; expected a torch.nn.Module"),
        ("faulty", {}, r"nets.py:faulty raised KeyError in nets.py, line 31: 'missing'"),
        ("with_classes", {"bais": False}, r"unknown option 'bais'; did you mean 'bias'"),
    ],
)
def test_faults_of_the_users_own(user_file, function, options, message):
    with pytest.raises(FastpruneError, match=message):
        build(f"{user_file}:{function}", **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import no_such_thing",
            r"importing .*bad.py raised ModuleNotFoundError in bad.py, line 1",
        ),
        ("x = (1,\n", r"importing .*bad.py raised SyntaxError"),
        ("\nx = 1 / 0", r"raised ZeroDivisionError in bad.py, line 2: division by zero"),
    ],
)
def test_a_file_that_raises_on_import(tmp_path, source, message):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(FastpruneError, match=message):
        resolve(f"{tmp_path}/bad.py:net")


def test_a_package_that_raises_on_import(tmp_path, monkeypatch):
    (tmp_path / "bad_package_of_a_user.py").write_text("import no_such_thing")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FastpruneError, match=r"importing bad_package_of_a_user raised ModuleNotFoundError"
    ):
        resolve("bad_package_of_a_user:net")
