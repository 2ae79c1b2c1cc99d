"""Ways to damage a file: its bytes, its lines, its numbers, or the values of the structure that it holds.

Every mutation is a function ``(content, rng) -> content`` of bytes; the same generator gives the same damage.
"""

import copy
import io
import json
import re
import zipfile

import numpy as np
import torch

NUMBER = re.compile(rb"-?\d+(\.\d+)?")
TOKEN = re.compile(rb"[^\s,;:=<>\[\]{}\"']+")
NUMBERS = tuple(
    text.encode()
    for text in (
        "0", "-1", "1", "2", "3", "7", "255", "1000", "65536", "999999999", "-999999999", "99999999999999999999",
        "1e300", "1e309", "-1e309", "nan", "inf", "-inf", "0.5", "-0.0", "1e-320", "1,2", ",", "0x10", "0x_", "1_0",
        "--1", "=", "]", "[", "{", "}", "²", "١", "１", "null", "true", "~", "*a", "&a", "!!int", "<<", "|", "é",
        "2024-01-31", "$x_$", "<!--<script>", "", " ", "\0", "\x1b[2J", "\u2028", "9" * 400, "9" * 5000,
    )
)  # fmt: skip
VALUES = (
    None, True, False, -1, 0, 1, 2**31, 2**40, 2**63, 2**80, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"),
    "", "1", "a\nb", "$x_$", "\ud800", "\0", "x" * 5000, "../../x", [], {}, [1], [[[]]], {"id": 1}, [None] * 5,
)  # fmt: skip


def mutate_bytes(content, rng):
    """Change one thing about the bytes: a bit, a piece replaced, put in, taken out, swapped or repeated, or the end."""
    kind = rng.randrange(10)
    at = rng.randrange(len(content) + 1)
    size = rng.choice([1, 1, 1, 4, 4, 40])
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content + rng.randbytes(rng.choice([1, 3, 4, 8, 400]))
    if kind == 2:
        return content[:at] + rng.choice([rng.randbytes(size), *NUMBERS[:12]]) + content[at:]
    if kind == 3:
        return content[:at] + content[at + rng.choice([1, 4, 4, 100]) :]
    if kind == 4:
        head = rng.randrange(24)
        return content[:head] + rng.randbytes(rng.choice([1, 4])) + content[head + 4 :]
    if kind == 5:
        other = rng.randrange(len(content) + 1)
        low, high = sorted((at, other))
        return content[:low] + content[high : high + size] + content[low + size : high] + content[low : low + size]
    if kind == 6:
        return content[:at] + content[at : at + 100 * size] * rng.choice([2, 2, 50]) + content[at + 100 * size :]
    if kind == 7 and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    return content[:at] + rng.choice([rng.randbytes(size), b"\xff" * size, b"\0" * size]) + content[at + size :]


def mutate_text(content, rng):
    """Change one thing about a text: a line, a number, a word or a letter."""
    lines = content.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(10)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines[other:other] = [lines[at]] * rng.choice([1, 1, 300])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        del lines[at:]
    elif kind == 4:
        place = rng.randrange(len(lines[at]) + 1)
        letter = chr(rng.choice([rng.randrange(256), rng.randrange(0x3000), 0xD800]))
        lines[at] = lines[at][:place] + letter.encode("utf-8", "surrogatepass") + lines[at][place + 1 :]
    elif kind == 5:
        lines[at] = rng.choice([b"", lines[at][::-1], lines[at] * 2, lines[at].upper(), b"  " + lines[at]])
    else:  # a number or a word, which find the most faults
        pattern = NUMBER if kind < 9 else TOKEN
        numbered = [index for index, line in enumerate(lines) if pattern.search(line)]
        if numbered:
            at = rng.choice(numbered)
            hit = rng.choice(list(pattern.finditer(lines[at])))
            lines[at] = lines[at][: hit.start()] + rng.choice(NUMBERS) + lines[at][hit.end() :]
    return b"\n".join(lines)


def mutate_tree(tree, rng, values=VALUES):
    """Return the nested lists and dicts with one thing changed: a value, a key, an entry left out or twice."""
    tree = copy.deepcopy(tree)
    places = []  # (container, key) of everything below the root

    def walk(container):
        for key in list(container) if isinstance(container, dict) else range(len(container)):
            places.append((container, key))
            if isinstance(container[key], (dict, list)) and len(places) < 5000:
                walk(container[key])

    walk(tree)
    if not places:
        return rng.choice(values)
    container, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(["", "id", "0", f"{key}x", "\ud800"])] = container.pop(key)
    elif kind == 1 or (kind == 2 and isinstance(container, list)):
        container.insert(rng.randrange(len(container) + 1), container[key])
    elif kind == 3:
        other, other_key = rng.choice(places)
        if key in (container if isinstance(container, dict) else range(len(container))):
            other[other_key] = copy.deepcopy(container[key])
    else:
        container[key] = (
            damaged_tensor(container[key], rng) if isinstance(container[key], torch.Tensor) else rng.choice(values)
        )
    return tree


def damaged_tensor(tensor, rng):
    """Return a tensor with other numbers, another type, another shape or another layout."""
    flat = tensor.clone().reshape(-1)
    changes = [
        lambda: tensor.double() * float("nan"), lambda: tensor.double() + 1e300, lambda: -tensor.float().abs() - 1,
        lambda: tensor.to(torch.int64), lambda: tensor.to(torch.complex64), lambda: tensor > 0, lambda: flat[:-1],
        lambda: tensor.to_sparse(), lambda: tensor[None], lambda: flat.new_zeros(1).expand(1 << 40),
        lambda: flat.new_zeros(0), lambda: tensor.to(torch.float16), lambda: tensor.to("meta"), lambda: 3,
    ]  # fmt: skip
    return rng.choice(changes)()


def mutate_json(content, rng):
    """Change one value of a JSON text, or make it deep, or give it a number of 5,000 digits."""
    kind = rng.randrange(12)
    if kind == 0:
        return b'{"a":' * 100_000 if rng.randrange(2) else b"[" * 200_000 + content
    text = json.dumps(mutate_tree(json.loads(content), rng), ensure_ascii=bool(rng.randrange(2)))
    if kind == 1:
        text = re.sub(r"\d+", "9" * 5000, text, count=rng.randrange(1, 4))
    return text.encode("utf-8", "surrogatepass")


def mutate_torch_zip(content, rng):
    """Change one value of what ``torch.save`` wrote."""
    tree = torch.load(io.BytesIO(content), weights_only=True)
    stream = io.BytesIO()
    torch.save(mutate_tree(tree, rng, [*VALUES, torch.zeros(3), torch.ones(())]), stream)
    return stream.getvalue()


def mutate_zip_entries(content, rng):
    """Change bytes of one entry of an archive, the pickle of a ``.pt`` most likely, with its checksum right again."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = pickles[0] if pickles and rng.randrange(4) else rng.choice(names)
        for name in names:
            data = old.read(name)
            compression = zipfile.ZIP_DEFLATED if rng.randrange(50) == 0 else zipfile.ZIP_STORED
            new.writestr(name, mutate_bytes(data, rng) if name == chosen else data, compression)
            if rng.randrange(200) == 0:
                new.writestr(f"{name}x", data)
    return stream.getvalue()


def mutate_arrays(content, rng):
    """Change one array of an ``.npz``: its values, type, shape or name, or its presence."""
    with np.load(io.BytesIO(content)) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = rng.choice(list(arrays))
    values = arrays[name]
    kind = rng.randrange(9)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[rng.choice(["x", f"{name}x", rng.choice(list(arrays))])] = arrays.pop(name)
    elif kind == 2:
        arrays[name] = values.astype(rng.choice([np.float64, np.int8, np.uint64, bool, "U3", complex]))
    elif kind == 3:
        arrays[name] = values[: len(values) // 2] if values.ndim else values[None]
    elif kind == 4:
        arrays[name] = values.ravel()[:, None]
    elif kind == 5:
        arrays[name] = np.resize(np.array([2**62, -1, 0], dtype=np.int64), values.shape)
    elif kind == 6:
        arrays[name] = np.zeros(rng.choice([0, 10_000_000]), dtype=values.dtype)
    else:
        arrays[name] = values.copy()
        arrays[name].reshape(-1)[rng.randrange(max(1, values.size)) if values.size else slice(0)] = 1
    stream = io.BytesIO()
    (np.savez_compressed if kind == 6 else np.savez)(stream, **arrays)
    return stream.getvalue()
