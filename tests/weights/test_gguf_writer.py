from __future__ import annotations

from pathlib import Path

import gguf

from amigo_local.weights.gguf_writer import encode_field


def test_metadata_is_encoded_as_gguf_py_encodes_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint32("a", 7)
    writer.add_float32("b", 0.5)
    writer.add_bool("c", True)
    writer.add_string("d", "Grüße")
    writer.add_array("e", [1, 2, 3])
    writer.add_array("f", ["x", "yz"])
    writer.add_array("g", [0.5, 1.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    values = {"a": 7, "b": 0.5, "c": True, "d": "Grüße", "e": (1, 2, 3), "f": ("x", "yz"), "g": (0.5, 1.5)}
    ours = b"".join(encode_field(key, value) for key, value in values.items())  # type: ignore[arg-type]
    assert ours in (tmp_path / "a.gguf").read_bytes()
