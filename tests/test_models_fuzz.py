"""Damaged and malicious files: every one loads or gives a UserError of one line, soon and within bounded memory.

The cases run in a child process under a limit of its address space; an alarm ends a case that hangs.
"""

import io
import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS_PER_CASE = 20
MEMORY = 4 << 30  # bytes beyond what the child has after its imports; the largest network that is built has 1.6 GB
NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "255",
    "1000",
    "65536",
    "999999999",
    "-999999999",
    "1e309",
    "nan",
    "inf",
    "0.5",
)
NUMBERS += ("", "1,2", ",", "9" * 400, "0x10", "１", "1e-320", "--1", "\x00", "=", "]")
NUMBER = re.compile(r"-?\d+(\.\d+)?")
CFGS = ("yolov3-nano.cfg", "yolov3-tiny.cfg", "yolov5n.cfg")


def mutate_lines(lines, rng):
    """Change one thing in a list of cfg lines, in place."""
    at = rng.randrange(len(lines))
    kind = rng.randrange(9)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif kind == 2:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        del lines[at:]
    elif kind == 4 and lines[at]:
        place = rng.randrange(len(lines[at]))
        lines[at] = (
            lines[at][:place] + chr(rng.choice([rng.randrange(256), rng.randrange(0x3000)])) + lines[at][place + 1 :]
        )
    elif kind == 5:
        headers = [line for line in lines if line.startswith("[")]
        lines[at] = rng.choice(["[maxpool]", "[net]", "[foo]", "[", "[]", "[crnn]", "[sam]", "[reorg]", *headers[:3]])
    else:  # a number, which finds the most faults
        numbered = [index for index, line in enumerate(lines) if NUMBER.search(line)]
        if numbered:
            at = rng.choice(numbered)
            hits = list(NUMBER.finditer(lines[at]))
            hit = rng.choice(hits)
            lines[at] = lines[at][: hit.start()] + rng.choice(NUMBERS) + lines[at][hit.end() :]


def mutate_bytes(content, rng):
    """Return the bytes with one thing changed."""
    kind = rng.randrange(7)
    at = rng.randrange(len(content) + 1)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content + rng.randbytes(rng.choice([1, 3, 4, 8, 400]))
    if kind == 2:
        return content[:at] + rng.randbytes(rng.choice([1, 4, 4, 16])) + content[at:]
    if kind == 3:
        return content[:at] + content[at + rng.choice([1, 4, 4, 100]) :]
    if kind == 4:
        head = rng.randrange(24)
        return content[:head] + rng.randbytes(rng.choice([1, 4])) + content[head + 4 :]
    size = rng.choice([1, 1, 1, 4, 4, 40])
    return content[:at] + rng.choice([rng.randbytes(size), b"\xff" * size, b"\0" * size]) + content[at + size :]


def cfg_case(seed, folder):
    """Build the network of a mutated cfg, and run it where that is cheap."""
    import torch

    from models.network import build_network, require_heads

    rng = random.Random(seed)
    lines = (REPOSITORY / "cfg" / CFGS[seed % len(CFGS)]).read_text().split("\n")
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        mutate_lines(lines, rng)
    path = folder / "x.cfg"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    network = build_network(path).eval()
    require_heads(network)
    width, height = network.input_wh
    if sum(float(row[7]) for row in network.table if row[7]) < 1 and width * height < 1e6:
        with torch.no_grad():
            raw_maps = network(torch.zeros(1, network.config.net["channels"], height, width))
        assert all(raw.shape[-1] == 5 + network.num_classes for raw in raw_maps)


def weights_case(seed, folder):
    """Load a mutated weight file."""
    from models.checkpoints.darknet_weights import load_darknet_weights, save_darknet_weights
    from models.network import build_network

    network = build_network(REPOSITORY / "cfg" / CFGS[0])
    path = folder / "x.weights"
    save_darknet_weights(network, path, seen=5, version=(0, seed % 2 + 1, 0))
    rng = random.Random(seed)
    content = path.read_bytes()
    for _ in range(rng.choice([1, 1, 3])):
        content = mutate_bytes(content, rng)
    path.write_bytes(content)
    load_darknet_weights(network, path)


def rezip(path, change):
    """Rewrite an archive with its pickle changed, so that its checksums are right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return buffer.getvalue()


def pt_case(seed, folder, source):
    """Load a checkpoint whose pickle, or whose archive, is mutated."""
    from models.checkpoints.load import load_network

    rng = random.Random(seed)
    content = rezip(source, lambda raw: mutate_bytes(raw, rng)) if seed % 3 else mutate_bytes(source.read_bytes(), rng)
    path = folder / "x.pt"
    path.write_bytes(content)
    load_network(path)


def own_case(seed, folder):
    """Load a mutated checkpoint of this toolkit."""
    import torch

    from models.convert_weights import write_checkpoint
    from models.network import build_network

    source = folder / "own.pt"
    if not source.exists():
        torch.manual_seed(0)
        network = build_network(REPOSITORY / "cfg" / CFGS[0], 2)
        write_checkpoint(network, ("a", "b"), source)
    pt_case(seed, folder, source)


def official_case(seed, folder):
    """Load a mutated official yolov5n."""
    pt_case(seed, folder, REPOSITORY.parent / "shared/data/weights/yolov5n.pt")


class HangError(BaseException):
    """Not an Exception, so that nothing catches it by chance."""


def hang(*_):
    raise HangError


def run_cases(kind, count, folder):
    """Run the cases and print one JSON line with what came of them."""
    import torch

    import models.checkpoints.load  # noqa: F401  (its memory belongs to the imports)
    from utils.errors import UserError

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGALRM, hang)
    outcome = {"loaded": 0, "refused": 0, "wrong": [], "messages": [], "slowest": 0.0}
    for seed in range(count):
        signal.alarm(SECONDS_PER_CASE)
        start = time.monotonic()
        try:
            globals()[f"{kind}_case"](seed, Path(folder))
            outcome["loaded"] += 1
        except UserError as error:
            outcome["refused"] += 1
            outcome["messages"].append(str(error))
            if not str(error).strip() or "\n" in str(error) or len(str(error)) > 500:
                outcome["wrong"].append((seed, f"no line: {str(error)[:200]!r}"))
        except (Exception, HangError) as error:
            outcome["wrong"].append((seed, f"{type(error).__name__}: {error}"[:300]))
        signal.alarm(0)
        outcome["slowest"] = max(outcome["slowest"], time.monotonic() - start)
    sys.stdout.write(json.dumps(outcome))


def outcome_of(kind, count, folder):
    command = [sys.executable, __file__, kind, str(count), str(folder)]
    child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=None, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stderr == "", child.stderr[-2000:]
    return json.loads(child.stdout)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its memory as only Linux can")
@pytest.mark.parametrize(
    ("kind", "count"),
    [("cfg", 50), ("weights", 50), slow("cfg", 500), slow("weights", 500), slow("own", 300), slow("official", 300)],
)
def test_every_mutated_file_loads_or_is_refused_in_one_line(request, tmp_path, kind, count):
    if kind == "official":
        request.getfixturevalue("shared")
    outcome = outcome_of(kind, count, tmp_path)
    assert outcome["wrong"] == []
    assert outcome["loaded"] + outcome["refused"] == count
    assert outcome["refused"] > count / 3  # or the mutations would prove little


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    run_cases(sys.argv[1], int(sys.argv[2]), sys.argv[3])
