"""Writes cases.json: what Jinja2 makes of the templates in this folder, set up as transformers does.

Run with Jinja2 3.1: python3 expected.py
"""
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent


class Generation(jinja2.ext.Extension):
    """The block tag {% generation %}, which changes no text."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("run"), [], [], body).set_lineno(line)

    def run(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception
ENV.globals["strftime_now"] = lambda form: __import__("datetime").datetime(2024, 7, 26).strftime(form)

S, U, A = ({"role": r} for r in ("system", "user", "assistant"))
CONVERSATIONS = [
    [{**U, "content": "2+2?"}],
    [{**S, "content": " 助手 \n"}, {**U, "content": "  質問\n"}, {**A, "content": "<think>\nhm\n</think>\n\n答え "}],
    [{**U, "content": "a banana"}, {**A, "content": "<think>\nhm\n</think>\n\nb"}, {**U, "content": "c"}],
    [{**U, "content": "a"}, {**A, "content": "b", "thought": "\nwhy\n"}],
    [{**S, "content": ""}, {**U, "content": "x"}, {**A, "content": "", "tool_calls": [
        {"name": "f", "arguments": {"q": "日本\n", "n": [1, 2.5, 1e-7, None], "e": {}, "l": []}}]}],
    [{**A, "content": "first"}, {**U, "content": "second"}],
    [{"role": "skip", "content": "no"}, {**U, "content": "yes"}, {"role": "stop", "content": ""}, {**U, "content": "no"}],
    [{**U, "content": "a"}, {**A, "content": "b"}, {**U, "content": "<tool_response>r</tool_response>"}, {**A, "content": "d"}],
]


def main():
    cases = []
    for path in sorted(HERE.glob("*.jinja")):
        template = ENV.from_string(path.read_text(encoding="utf-8"))
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                variables = {"bos_token": "<s>", "eos_token": "</s>"}
                if prompt and len(messages) == 1:
                    variables["enable_thinking"] = False
                try:
                    out = {"text": template.render(messages=messages, tools=None, documents=None,
                                                   add_generation_prompt=prompt, **variables)}
                except jinja2.exceptions.TemplateError as error:
                    out = {"error": error.message}
                cases.append({"template": path.name, "messages": messages, "add_generation_prompt": prompt,
                              "variables": variables, **out})
    text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (HERE / "cases.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


main()
