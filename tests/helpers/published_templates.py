"""
Chat templates of the model families, written anew from the published descriptions of their formats.

An answer with the token that ends it stands between the comments `{#answer#}` and `{#end#}`. Templates as they are
published mark nothing there; `mark_answers` puts the markers of `return_assistant_tokens_mask` in their place.
"""

# Roles other than these, or two messages of one role in a row, are refused.
_IN_TURNS = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% endfor %}"
)
_SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
)
_CHATML_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{#answer#}{{ message['content'] + '<|im_end|>' }}{#end#}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
)
_ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}{#answer#}{{ message['content'] + eos_token }}{#end#}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_LLAMA_3_TURNS = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{#answer#}{{ message['content'] | trim + '<|eot_id|>' }}{#end#}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_MISTRAL = (
    _SYSTEM_FIRST + _IN_TURNS + "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system + '\\n\\n' if system and loop.index0 == 0 else '') + message['content'] + '[/INST]' }}"
    "{% else %}{#answer#}{{ ' ' + message['content'] + eos_token }}{#end#}{% endif %}{% endfor %}"
)
_GEMMA_TURNS = (
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' }}{% if role == 'model' %}"
    "{#answer#}{{ message['content'] | trim + '<end_of_turn>' }}{#end#}"
    "{% else %}{{ (system + '\\n\\n' if system and loop.index0 == 0 else '') + message['content'] | trim }}"
    "{{ '<end_of_turn>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

TEMPLATES = {
    "chatml": _CHATML_TURNS,
    "qwen2": _DEFAULT_SYSTEM + _CHATML_TURNS,
    "smollm2": _DEFAULT_SYSTEM.replace("helpful assistant", "helpful AI assistant named SmolLM") + _CHATML_TURNS,
    "bos_chatml": "{{ bos_token }}" + _CHATML_TURNS,
    "qwen3": (
        # The reasoning of the last answer only is written.
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{#answer#}"
        "{% if loop.last %}{{ '<think>\\n' + (message['reasoning_content'] or '') + '\\n</think>\\n\\n' }}{% endif %}"
        "{{ message['content'] + '<|im_end|>' }}{#end#}{{ '\\n' }}"
        "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{% endif %}"
    ),
    "smollm3": (
        "{{ '<|im_start|>system\\n## Metadata\\n\\nToday Date: ' + strftime_now('%d %B %Y') + '\\n\\n' }}"
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}"
        "{% else %}{{ 'You are a helpful AI assistant named SmolLM.' }}{% endif %}{{ '<|im_end|>\\n' }}" + _CHATML_TURNS
    ),
    "llama2": (
        _SYSTEM_FIRST + _IN_TURNS + "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{% set start = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if system and loop.index0 == 0 else '' %}"
        "{{ bos_token + '[INST] ' + start + message['content'] | trim + ' [/INST]' }}"
        "{% else %}{#answer#}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{#end#}{% endif %}{% endfor %}"
    ),
    "llama3": "{{ bos_token }}" + _LLAMA_3_TURNS,
    "llama3.1": (
        _SYSTEM_FIRST + "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
        "{{ 'Cutting Knowledge Date: December 2023\\nToday Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}"
        "{{ system + '<|eot_id|>' }}" + _LLAMA_3_TURNS
    ),
    "mistral_v1": _MISTRAL.replace("'[/INST]'", "' [/INST]'").replace("{{ ' ' + message", "{{ message"),
    "mistral_v3": _MISTRAL,
    "mistral_v7": (
        _SYSTEM_FIRST + _IN_TURNS + "{{ bos_token }}"
        "{% if system %}{{ '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
        "{% else %}{#answer#}{{ message['content'] + eos_token }}{#end#}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% set system = '' %}" + _IN_TURNS + _GEMMA_TURNS
    ),
    "gemma3": "{{ bos_token }}" + _SYSTEM_FIRST + _IN_TURNS + _GEMMA_TURNS,
    "phi3": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}{% if message['role'] == 'assistant' %}"
        "{#answer#}{{ message['content'] + '<|end|>' }}{#end#}{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}"
        "{% endif %}"
    ),
    "phi4": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' }}"
        "{% if message['role'] == 'assistant' %}{#answer#}{{ message['content'] + '<|im_end|>' }}{#end#}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
    "zephyr": _ZEPHYR,
    "bos_zephyr": "{{ bos_token }}" + _ZEPHYR,
    "deepseek2": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant:' }}"
        "{#answer#}"
        "{{ ' ' + message['content'] + eos_token }}{#end#}{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "deepseek3": (
        _SYSTEM_FIRST + "{{ bos_token + system }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<｜User｜>' + message['content'] }}{% else %}{{ '<｜Assistant｜>' }}{#answer#}"
        "{{ message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{#end#}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
    ),
    "vicuna": (
        _SYSTEM_FIRST + "{{ bos_token + (system or 'A chat between a curious user and an assistant.') }}"
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
        "{% else %}{{ ' ASSISTANT:' }}{#answer#}{{ ' ' + message['content'] + eos_token }}{#end#}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    ),
    "alpaca": (
        _SYSTEM_FIRST + "{{ system or 'Below is an instruction that describes a task.' }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '\\n\\n### Instruction:\\n' + message['content'] }}"
        "{% else %}{{ '\\n\\n### Response:\\n' }}{#answer#}{{ message['content'] + eos_token }}{#end#}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
    ),
    "falcon": (
        _SYSTEM_FIRST + "{{ system }}{% for message in messages %}{{ '\\n\\n' if system or not loop.first }}"
        "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] }}{% else %}{{ 'Assistant:' }}{#answer#}"
        "{{ ' ' + message['content'] + eos_token }}{#end#}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
    ),
    "command_r": (
        "{{ bos_token }}{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
        "{% if message['role'] == 'assistant' %}"
        "{{ '<|CHATBOT_TOKEN|>' }}{#answer#}{{ message['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}{#end#}{% else %}"
        "{{ '<|' + message['role'] | upper + '_TOKEN|>' + message['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}"
        "{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
    ),
    "granite": (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|start_of_role|>system<|end_of_role|>You are Granite, developed by IBM.<|end_of_text|>\\n' }}{% endif %}"
        "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
        "{% if message['role'] == 'assistant' %}{#answer#}{{ message['content'] + '<|end_of_text|>' }}{#end#}"
        "{% else %}{{ message['content'] + '<|end_of_text|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
    ),
    "olmo2": (
        # The last answer has no line end behind it.
        "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
        "{% if message['role'] == 'assistant' %}{#answer#}{{ message['content'] + eos_token }}{#end#}"
        "{{ '\\n' if not loop.last }}{% else %}{{ message['content'] + '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "openchat": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ message['content'] + '<|end_of_turn|>' }}{% else %}{{ 'GPT4 Correct ' + message['role'].title() + ':' }}"
        "{#answer#}{{ ' ' + message['content'] + '<|end_of_turn|>' }}{#end#}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
    ),
    "glm4": (
        # An answer ends where the next turn begins: generation stops at <|user|>.
        "{{ '[gMASK]<sop>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
        "{#answer#}{{ message['content'] }}{#end#}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}"
        "{% endif %}"
    ),
    "nemotron": (
        "{{ '<extra_id_0>System\\n' }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% set messages = messages[1:] %}{% endif %}{{ '\\n' }}{% for message in messages %}"
        "{{ '<extra_id_1>' + message['role'] | title + '\\n' }}{#answer#}{{ message['content'] }}{#end#}{{ '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<extra_id_1>Assistant\\n' }}{% endif %}"
    ),
    "gpt_oss": (
        "{{ '<|start|>system<|message|>You are ChatGPT.\\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\\n\\n' }}"
        "{{ '# Valid channels: analysis, commentary, final.<|end|>' }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}"
        "{{ '<|start|>developer<|message|># Instructions\\n\\n' + message['content'] + '<|end|>' }}"
        "{% elif message['role'] == 'user' %}{{ '<|start|>user<|message|>' + message['content'] + '<|end|>' }}"
        "{% else %}{{ '<|start|>assistant' }}{#answer#}{{ '<|channel|>final<|message|>' + message['content'] }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{#end#}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
}


def template(name: str) -> str:
    """Returns a template as it is published: it does not mark answers."""
    return TEMPLATES[name].replace("{#answer#}", "").replace("{#end#}", "")


def mark_answers(name: str) -> str:
    """Returns a template whose answers stand in `{% generation %}`."""
    text = TEMPLATES[name]
    if name in ("llama3", "llama3.1", "openchat", "glm4", "nemotron"):
        # These write all roles in one place.
        start, rest = text.split("{#answer#}")
        middle, end = rest.split("{#end#}")
        return (
            f"{start}{{% if message['role'] == 'assistant' %}}{{% generation %}}{middle}{{% endgeneration %}}"
            f"{{% else %}}{middle}{{% endif %}}{end}"
        )
    return text.replace("{#answer#}", "{% generation %}").replace("{#end#}", "{% endgeneration %}")
