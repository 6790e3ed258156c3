from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from amigo_local.domain.errors import InputError
from amigo_local.domain.generation import GenerationOptions, Message
from amigo_local.domain.modelfile import Modelfile
from amigo_local.serving.chat_rendering import conversation, render_chat
from amigo_local.serving.ollama_chat import OllamaBackend
from amigo_local.serving.ollama_server import OllamaServer
from amigo_local.serving.templates import choose_template, families, family
from tests.serving.conftest import Events
from tests.support.ollama_server import RealOllama
from tests.support.tiny_gguf import CHATML, GEMMA

USER = Message("user", "Add two numbers.")
CONVERSATIONS = {
    "one question": (USER,),
    "a system": (Message("system", "Be brief.\nAlways."), USER),
    "several turns": (USER, Message("assistant", "def add(a, b): ..."), Message("user", " Thanks! 🙂\n")),
    "all": (
        Message("system", "s"),
        USER,
        Message("assistant", "a"),
        Message("user", "b"),
        Message("assistant", "c"),
        USER,
    ),
    "neighbours of one role": (USER, USER, Message("assistant", "a"), Message("assistant", "b"), USER),
}
PINNED = {
    "chatml": "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
    "gemma3": "<start_of_turn>user\ns\n\nq<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "[INST] s\n\nq[/INST]",
}
# As in the GGUF of SmolLM2-Instruct: it speaks of itself when nobody else does.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# google/gemma-3-it's, without its images.
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def prompts_in_the_log(server: RealOllama) -> list[str]:
    """What a server with OLLAMA_DEBUG=2 logs of each prompt it sends to its runner."""
    found = re.findall(r'msg="completion request" prompt=("(?:[^"\\]|\\.)*"|\S+)', server.log.read_text())
    return [ast.literal_eval(text) if text.startswith('"') else text for text in found]


@pytest.mark.parametrize("name", sorted(PINNED))
def test_the_go_template_renders_in_ollama_what_the_jinja_one_renders_here(
    name: str, server: OllamaServer, ollama_server: RealOllama, tiny_gguf: Path, events: Events
) -> None:
    chosen = family(name)
    server.create(f"family-{name}", tiny_gguf, chosen.definition, events)
    backend = OllamaBackend(server)
    options = GenerationOptions(max_tokens=1, context_length=512)
    for messages in CONVERSATIONS.values():
        backend.generate(f"family-{name}", messages, options, lambda text: None)
    theirs = prompts_in_the_log(ollama_server)[-len(CONVERSATIONS) :]
    ours = [render_chat(chosen.jinja, conversation(Modelfile(), messages)) for messages in CONVERSATIONS.values()]
    assert theirs == ours


def test_what_each_family_renders() -> None:
    messages = (Message("system", "s"), Message("user", "q"))
    assert {each.name: render_chat(each.jinja, messages) for each in families()} == PINNED
    assert [each.name for each in families()] == ["gemma3", "llama3", "chatml", "mistral"]
    assert all(each.definition.stops and each.definition.template for each in families())


@pytest.mark.parametrize(
    ("template", "bos", "name", "system"),
    [
        (CHATML, "", "chatml", ""),
        (SMOLLM2, "", "chatml", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        (GEMMA3, "<bos>", "gemma3", ""),
    ],
)
def test_a_chat_template_finds_the_family_that_renders_the_same(
    template: str, bos: str, name: str, system: str
) -> None:
    chosen = choose_template(template, "llama", bos_token=bos)
    assert (chosen.family, chosen.exact, chosen.definition.system) == (name, True, system)
    assert chosen.definition.template == family(name).definition.template
    messages = (USER, Message("assistant", "a"), USER)
    expected = render_chat(template, messages, bos_token=bos).removeprefix(bos)
    assert render_chat(chosen.jinja, conversation(chosen.definition, messages)) == expected


def test_without_proof_the_family_is_guessed_and_says_so() -> None:
    assert choose_template(GEMMA, "gemma3").exact is False  # writes a system turn, which Gemma has not
    assert choose_template(GEMMA, "whatever").family == "gemma3"
    assert choose_template(None, "gemma3").family == "gemma3"
    assert choose_template(None, "llama").family == "chatml"
    assert choose_template(None, "llama", is_token=lambda text: text == "<|start_header_id|>").family == "llama3"
    assert choose_template("{{ raise_exception('no') }}[INST]", "llama").family == "mistral"
    assert not any(choose_template(None, name).exact for name in ("llama", "gemma3"))


def test_the_definitions_turns_and_system_come_first() -> None:
    definition = Modelfile(system="S", messages=(Message("user", "u"), Message("assistant", "a")))
    assert conversation(definition, (USER,)) == (Message("system", "S"), *definition.messages, USER)
    own = Message("system", "own")
    assert conversation(Modelfile(system="S"), (own, USER)) == (own, USER)


def test_a_template_runs_in_a_sandbox_and_fails_with_its_own_words() -> None:
    with pytest.raises(InputError, match="chat template fails: roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", (USER,))
    with pytest.raises(InputError, match="chat template fails"):
        render_chat("{{ ''.__class__.__mro__[1].__subclasses__() }}", (USER,))
    with pytest.raises(InputError, match="chat template fails"):
        render_chat("{% for", (USER,))
    assert render_chat("{{ messages | tojson }}", (Message("user", "<é>"),)) == '[{"role":"user","content":"<é>"}]'


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="no chat family 'alpaca'") as caught:
        family("alpaca")
    assert "chatml" in caught.value.hint
