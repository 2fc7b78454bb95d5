"""The hub client against a hub on this machine (tests/hub_server.py), and against Python's huggingface_hub on the same
server: what the one has brought, the other finds."""

import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("PICOTRON_BUILD", ROOT / "build"))
PROGRAM = BUILD / "tests" / "hub_fetch"
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"{PROGRAM} is not built")

specification = importlib.util.spec_from_file_location("hub_server", ROOT / "tests" / "hub_server.py")
hub_server = importlib.util.module_from_spec(specification)
sys.modules["hub_server"] = hub_server
specification.loader.exec_module(hub_server)

MODEL, DATA = "org/little-model", "org/stories"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def hub(tmp_path):
    root, chance = tmp_path / "hub", random.Random(1)
    model = root / "models" / MODEL
    put(model / "config.json", '{"model_type": "llama"}')
    put(model / "tokenizer.json", '{"a": 1}' + " " * 5000)
    put(model / "tokenizer_config.json", "{}")
    put(model / "model-00001-of-00002.safetensors", chance.randbytes(3_000_000))
    put(model / "model-00002-of-00002.safetensors", chance.randbytes(500_000))
    weights = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    put(model / "model.safetensors.index.json", weights)
    put(model / "pytorch_model.bin", b"not this")
    data = root / "datasets" / DATA
    for i in range(3):
        put(data / "data" / f"train-0000{i}-of-00003-abc.parquet", chance.randbytes(200_000))
    put(data / "data" / "validation-00000-of-00001-abc.parquet", chance.randbytes(1000))
    put(data / "README.md", "stories")
    put(root / "datasets" / "org/lines" / "lines.jsonl", "{}")
    put(root / "converted" / "org/lines" / "default/train/0000.parquet", chance.randbytes(4000))
    put(root / "converted" / "org/lines" / "other/train/0000.parquet", chance.randbytes(4000))
    server = hub_server.Hub(root)
    yield server
    server.close()


@pytest.fixture
def ask(hub, tmp_path):
    """ask(arguments, VARIABLE=…) → the ended process."""

    def run(*arguments, **variables):
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        environment = keep | {"HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint} | variables
        return subprocess.run([PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=120)

    return run


def found(ended):
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def refused(ended, code, *says):
    assert ended.returncode == code, (ended.stdout, ended.stderr)
    assert ended.stderr.count("\n") == 1, ended.stderr
    for text in says:
        assert text in ended.stderr
    return ended.stderr


def same_files(folder, hub, kind, repository, names):
    for name in names:
        assert (Path(folder) / name).read_bytes() == (hub.root / kind / repository / name).read_bytes(), name


WEIGHTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]


def test_a_model_comes_whole_and_once(ask, hub, tmp_path):
    folder, note = found(ask("model", MODEL, "all"))
    assert "Downloaded model org/little-model: 6 files, 3.5 MB" in note
    same_files(folder, hub, "models", MODEL, ["config.json", "tokenizer.json", "tokenizer_config.json", *WEIGHTS])
    assert not (Path(folder) / "pytorch_model.bin").exists()
    cache = tmp_path / "home" / ".cache" / "huggingface" / "hub" / "models--org--little-model"
    assert Path(folder) == cache / "snapshots" / hub.commit("models", MODEL)
    assert (cache / "refs" / "main").read_text() == hub.commit("models", MODEL)
    assert os.readlink(Path(folder) / "config.json").startswith("../../blobs/")
    assert not list(cache.rglob("*.incomplete"))
    hub.requests.clear(), hub.storage_requests.clear()
    for what in ["all", "config", "tokenizer"]:
        assert found(ask("model", MODEL, what)) == [folder]
        assert found(ask("model", MODEL, what, HF_HUB_OFFLINE="1")) == [folder]
    assert hub.requests == hub.storage_requests == []


def test_a_model_that_was_renamed_is_found(ask, hub):
    hub.renamed = {"org/old-name": MODEL}
    folder, _ = found(ask("model", "org/old-name", "all"))
    same_files(folder, hub, "models", MODEL, ["config.json", "tokenizer.json", *WEIGHTS])


def test_only_what_is_needed_comes(ask, hub):
    folder, _ = found(ask("model", MODEL, "tokenizer"))
    assert sorted(os.listdir(folder)) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert found(ask("model", MODEL, "config"))[0] == folder
    assert not any("safetensors" in path for _, path, *_ in hub.requests)


def test_a_dataset_comes_in_order_and_once(ask, hub):
    *files, note = found(ask("dataset", DATA, "", "train"))
    assert [Path(file).name for file in files] == [f"train-0000{i}-of-00003-abc.parquet" for i in range(3)]
    same_files(Path(files[0]).parents[1], hub, "datasets", DATA, [f"data/{Path(file).name}" for file in files])
    hub.requests.clear()
    assert found(ask("dataset", DATA, "", "train")) == files and hub.requests == []
    assert found(ask("dataset", DATA, "", "train", HF_HUB_OFFLINE="1")) == files
    assert "validation-00000" in found(ask("dataset", DATA, "", "validation"))[0]


def test_a_dataset_without_parquet_comes_as_the_hub_converts_it(ask, hub):
    files = found(ask("dataset", "org/lines", "", "train"))[:-1]
    assert len(files) == 1 and files[0].endswith("/default/train/0000.parquet")
    assert Path(files[0]).read_bytes() == (hub.root / "converted/org/lines/default/train/0000.parquet").read_bytes()
    assert found(ask("dataset", "org/lines", "other", "train"))[0].endswith("/other/train/0000.parquet")
    hub.requests.clear()
    assert found(ask("dataset", "org/lines", "", "train")) == files and hub.requests == []
    refused(ask("dataset", "org/lines", "", "test"), 2, "data set org/lines has no Parquet files of split test",
            "may be default train, other train")


CHOICES = {
    "numbered": (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "", "train", [0]),
    "at the root": (["train.parquet", "test.parquet", "README.md"], "", "test", [1]),
    "subsets": (["en/train-0.parquet", "de/train-0.parquet"], "de", "train", [1]),
    "subsets, none said": (["en/train-0.parquet", "de/train-0.parquet"], "", "train", []),
    "folders of splits": (["x/train/0001.parquet", "x/train/0000.parquet", "x/test/0000.parquet"], "x", "train", [1, 0]),
    "another word that begins so": (["data/training_notes.parquet"], "", "train", []),
}


@pytest.mark.parametrize("files, subset, split, chosen", CHOICES.values(), ids=CHOICES.keys())
def test_which_files_a_split_is(ask, files, subset, split, chosen):
    assert found(ask("choose", subset, split, *files)) == [files[i] for i in chosen]


# --------------------------------------------------------------------------------------------------------------- tokens


def everything_under(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_gated_model_needs_a_token_which_goes_to_the_hub_alone(ask, hub, tmp_path):
    hub.trouble.gated = True
    said = refused(ask("model", MODEL, "all"), 2, "model org/little-model is gated: accept its terms at", MODEL, "HF_TOKEN")
    assert "give your token" in said
    said = refused(ask("model", MODEL, "all", HF_TOKEN="hf_wrong"), 2, "the token of who has accepted them")
    assert "hf_wrong" not in said
    assert found(ask("model", MODEL, "all", HF_TOKEN="hf_secret"))
    assert all(sent for _, _, sent, _ in hub.requests if _) and hub.storage_requests
    assert not any(sent for _, _, sent, _ in hub.storage_requests), "the storage is another host"
    assert b"hf_secret" not in everything_under(tmp_path / "home")


def test_where_a_token_may_lie(ask, hub, tmp_path):
    hub.trouble.private = True
    refused(ask("model", MODEL, "config"), 2, "has no model org/little-model, or it is private: check the name")
    put(tmp_path / "home" / ".cache" / "huggingface" / "token", "hf_secret\n")
    assert found(ask("model", MODEL, "config"))
    put(tmp_path / "there", "hf_secret")
    assert found(ask("model", MODEL, "config", HF_HOME=str(tmp_path / "other"), HF_TOKEN_PATH=str(tmp_path / "there")))


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_refusals_are_sentences(ask, hub):
    refused(ask("model", "org/none", "all"), 2, "has no model org/none, or it is private")
    refused(ask("dataset", "org/none", "", "train"), 2, "has no data set org/none, or it is private")
    refused(ask("model", MODEL, "all", HF_TOKEN="hf_old"), 2, "refuses model org/little-model (401)", "is not valid for it")
    refused(ask("model", MODEL, "all", HF_HUB_OFFLINE="1"), 2, "model org/little-model is not in", "HF_HUB_OFFLINE forbids")
    refused(ask("dataset", DATA, "", "train", HF_HUB_OFFLINE="1"), 2, "data set org/stories is not in", "HF_HUB_OFFLINE forbids")
    put(hub.root / "models" / "org/empty" / "README.md", "x")
    refused(ask("model", "org/empty", "config"), 2, "model org/empty has no config.json")
    put(hub.root / "models" / "org/old" / "config.json", "{}")
    refused(ask("model", "org/old", "all"), 2, "model org/old has no .safetensors file")
    refused(ask("model", MODEL, "all", HF_ENDPOINT="http://nowhere.invalid"), 1, "nowhere.invalid ")
    hub.trouble.statuses = [500] * 5
    refused(ask("model", MODEL, "all"), 1, "answers 500 for model org/little-model")


def test_what_passes_is_tried_again(ask, hub):
    hub.trouble.statuses = [429, 500, 503]
    begun = time.monotonic()
    assert found(ask("model", MODEL, "all"))
    assert time.monotonic() - begun < 10
    hub.trouble.statuses = [429] * 5
    refused(ask("model", "org/other", "all"), 1, "too many requests (429): wait some minutes, or give a token")
    assert hub.trouble.statuses == []


def test_a_connection_cut_in_the_middle_goes_on_where_it_was(ask, hub, tmp_path):
    hub.trouble.cut = 3
    folder, _ = found(ask("model", MODEL, "all"))
    same_files(folder, hub, "models", MODEL, WEIGHTS)
    assert any(wanted not in (None, "bytes=0-") for *_, wanted in hub.storage_requests)


def test_a_download_that_was_killed_goes_on(ask, hub, tmp_path):
    hub.trouble.slow = 0.05
    cache = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint}
    running = subprocess.Popen([PROGRAM, "model", MODEL, "all"], env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not any(p.stat().st_size > 500_000 for p in cache.rglob("*.incomplete")) and time.monotonic() < until:
        time.sleep(0.01)
    running.kill()
    running.wait()
    hub.trouble.slow = 0
    hub.storage_requests.clear()
    folder, _ = found(ask("model", MODEL, "all"))
    same_files(folder, hub, "models", MODEL, WEIGHTS)
    begins = [int(wanted[6:-1]) for *_, wanted in hub.storage_requests if wanted]
    assert max(begins) > 500_000


def test_wrong_bytes_are_not_kept(ask, hub, tmp_path):
    hub.trouble.wrong_bytes = True
    refused(ask("model", MODEL, "all"), 1, "came damaged from", "its checksum differs")
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    hub.trouble.wrong_bytes = False
    same_files(found(ask("model", MODEL, "all"))[0], hub, "models", MODEL, WEIGHTS)


def test_processes_at_once_download_once(ask, hub, tmp_path):
    hub.trouble.slow = 0.01
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint}
    running = [subprocess.Popen([PROGRAM, "model", MODEL, "all"], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    folders = {one.communicate(timeout=60)[0].splitlines()[0] for one in running}
    assert len(folders) == 1 and all(one.returncode == 0 for one in running)
    sent = [path for method, path, *_ in hub.storage_requests if method == "GET"]
    assert len(sent) == len(set(sent)), "each large file once"


# ------------------------------------------------------------------------------------------- the cache is huggingface_hub's

CLIENT = """
import sys
from huggingface_hub import hf_hub_download, snapshot_download
kind, repository, files = sys.argv[1], sys.argv[2], sys.argv[3:]
for file in files:
    print(hf_hub_download(repository, file, repo_type=kind))
if not files:
    print(snapshot_download(repository, repo_type=kind))
"""


def python_client(hub, tmp_path, *arguments, offline=False):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint,
                   "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    ended = subprocess.run([sys.executable, "-c", CLIENT, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_huggingface_hub_finds_what_we_brought(ask, hub, tmp_path):
    folder, _ = found(ask("model", MODEL, "all"))
    *files, _ = found(ask("dataset", DATA, "", "train"))
    hub.requests.clear(), hub.storage_requests.clear()
    names = ["config.json", "tokenizer.json", *WEIGHTS]
    assert python_client(hub, tmp_path, "model", MODEL, *names, offline=True) == [f"{folder}/{name}" for name in names]
    data = [f"data/{Path(file).name}" for file in files]
    assert python_client(hub, tmp_path, "dataset", DATA, *data, offline=True) == files
    assert hub.requests == []
    # Online it asks for the version, and downloads nothing again.
    assert python_client(hub, tmp_path, "model", MODEL, *names) == [f"{folder}/{name}" for name in names]
    assert not [path for method, path, *_ in hub.storage_requests if method == "GET"]


def test_we_find_what_huggingface_hub_brought(ask, hub, tmp_path):
    (folder,) = python_client(hub, tmp_path, "model", MODEL)
    python_client(hub, tmp_path, "dataset", DATA)
    hub.requests.clear(), hub.storage_requests.clear()
    assert found(ask("model", MODEL, "all", HF_HUB_OFFLINE="1")) == [folder]
    assert len(found(ask("dataset", DATA, "", "train", HF_HUB_OFFLINE="1"))) == 3
    assert hub.requests == []
    assert found(ask("model", MODEL, "all"))[0] == folder
    assert len(found(ask("dataset", DATA, "", "train"))) == 3
    assert not [path for method, path, *_ in hub.storage_requests if method == "GET"]
