"""The chat template: conversation ``mistral_instruct`` of the authors' ``llava/conversation.py``.

``<s>[INST] <image>\\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]``: no line is trimmed, images come first
in their turn. Two things are ours. The authors have no system role: system text goes into the first
user turn, after its images and before the question, so that the trained order holds and image and
system text make one cached prefix. And a literal ``<image>`` in anyone's text becomes ``(image)``:
it would otherwise stand for an image that is not there.
"""

from __future__ import annotations

CHAT_TEMPLATE = r"""
{%- macro text(content) -%}
    {%- if content is string -%}
        {{- content | replace('<image>', '(image)') -}}
    {%- else -%}
        {%- for part in content or [] if part['type'] == 'text' -%}
            {{- '' if loop.first else '\n' -}}
            {{- part['text'] | replace('<image>', '(image)') -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set system = namespace(text='') -%}
{%- for message in messages if message['role'] == 'system' -%}
    {%- set system.text = system.text + text(message['content']) + '\n\n' -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages if message['role'] != 'system' -%}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception('Turns must alternate: user, assistant, user, and so on.') -}}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}
        {{- ' ' + text(message['content']) + ' ' + eos_token -}}
    {%- else -%}
        {{- '[INST] ' -}}
        {%- if message['content'] is not string -%}
            {%- for part in message['content'] if part['type'] in ['image', 'image_url'] -%}
                {{- '<image>\n' -}}
            {%- endfor -%}
        {%- endif -%}
        {{- system.text if loop.first else '' -}}
        {{- text(message['content']) + ' [/INST]' -}}
    {%- endif -%}
{%- endfor -%}
""".lstrip()
