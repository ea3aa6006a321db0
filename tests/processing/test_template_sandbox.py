"""Templates by strangers: none reaches Python, none eats the machine, each ends in a text or a sentence."""

import resource
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_pairs import TEMPLATE, refused

from gemlens.errors import InputError
from gemlens.processing.chat.template_limits import weight
from gemlens.processing.chat.template_sandbox import LONGEST_TEMPLATE, render

USER = {"role": "user", "content": "Who are you?"}

THINGS = [
    "''", "()", "[]", "{}", "(1)", "true", "none", "self", "cycler", "joiner", "namespace", "range", "dict", "messages",
    "bos_token", "raise_exception", "strftime_now", "''.join", "[].append", "{}.update", "messages[0]", "range(3)",
    "namespace()", "cycler(1)", "joiner()", "(messages|first)", "request", "config", "lipsum", "url_for", "g",
    "undefined",
]  # fmt: skip
WAYS = [
    ".__class__", "['__class__']", "|attr('__class__')", ".__class__.__mro__[1].__subclasses__()",
    ".__init__.__globals__['os'].popen('id').read()", "['__init__']['__globals__']['__builtins__']['eval']('1')",
    "['__cl' ~ 'ass__']['__base__']", "['\\x5f\\x5fclass\\x5f\\x5f']", ".__getattribute__('__class__')",
    ".__reduce_ex__(2)", "|map(attribute='__class__')|list|attr('pop')", ".__dict__.items()", ".__format__.__self__",
    ".gi_frame.f_back.f_globals", ".func_globals['os']", ".mro()", ".__doc__[0]",
]  # fmt: skip
SPECIAL = [
    "{{ '{0.__class__}'.format('') }}", "{{ '{a.__init__.__globals__}'.format_map({'a': cycler}) }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{% set x = ''['__class__'] %}{{ x }}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os }}",
    "{% from 'os' import popen %}", "{% extends 'a' %}", "{{ messages.append(1) }}", "{{ messages.pop() }}",
    "{{ messages[0].update(role='x') }}", "{{ messages[0].clear() }}", "{{ messages.sort() }}",
    "{{ ''.encode('utf-8') }}", "{{ 'a'.translate({97: 'b'}) }}", "{{ (1).to_bytes(9, 'big') }}",
    "{{ ''.maketrans('a') }}",
    "{% set loop = 1 %}{{ loop.__class__ }}", "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__ }}", "{% macro m() %}{% endmacro %}{{ m._func }}",
    "{% call(x) range() %}{{ caller.__globals__ }}{% endcall %}", "{{ self._TemplateReference__context }}",
    "{{ ''|attr('format')('a') }}", "{{ messages|tojson|attr('__class__') }}", "{{ namespace.__init__ }}",
    "{% generation %}{{ ''.__class__ }}{% endgeneration %}", "{{ environment }}{{ environment.x }}",
    "{{ context.x.y }}",
    "{{ [''.__class__]|list }}", "{{ {'a': ''.__class__} }}", "{{ dict(a=''.__class__) }}",
    "{% filter attr('x') %}{% endfilter %}",
]  # fmt: skip
PAYLOADS = [f"{{{{ {thing}{way} }}}}" for thing, way in product(THINGS, WAYS)] + SPECIAL

BIG = "('a' * 60000)"
BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(60000) %}{% for j in range(60000) %}{% endfor %}{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{{ i }}" + "{% endfor %}" * 3,
    "{% set ns = namespace(n=0) %}{% for i in range(60000) %}{% for j in range(60000) %}{% set ns.n = ns.n + 1 %}"
    + "{% endfor %}" * 2,
    "{{ range(10**30) }}",
    "{{ range(10**9) | list }}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ (10 ** 1000) ** 9 }}",
    "{{ 2 ** 4095 * 2 ** 4095 * 2 ** 4095 }}",
    "{{ (2 ** 4000) * (2 ** 4000) }}",
    "{% set ns = namespace(n=2) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(45) }}",
    "{% for a in [[[]]] recursive %}{{ loop([a]) }}{% endfor %}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s] * 3 %}{% endfor %}{{ ns.s == ns.s }}",
    "{% set ns = namespace(s={}) %}{% for i in range(60) %}{% set ns.s = {1: ns.s, 2: ns.s} %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=(1,)) %}{% for i in range(60) %}{% set ns.s = (ns.s, ns.s, ns.s) %}{% endfor %}{{ ns.s }}",
    "{% for i in range(60000) %}" + "{{ " + BIG + " }}{% endfor %}",
    "{% set x %}{% for i in range(60000) %}" + "{{ " + BIG + " }}{% endfor %}{% endset %}",
    "{% macro f() %}{% for i in range(60000) %}" + "{{ " + BIG + " }}{% endfor %}{% endmacro %}{{ f() | length }}",
    "{{ " + BIG + ".replace('', " + BIG + ") }}",
    "{{ " + BIG + " | replace('a', " + BIG + ") }}",
    "{{ " + BIG + ".join(range(60000) | map('string')) }}",
    "{{ range(60000) | join(" + BIG + ") }}",
    "{{ [" + BIG + "] * 60000 }}",
    "{{ [" + ", ".join([BIG] * 1000) + "] | join }}",
    "{{ " + " ~ ".join([BIG] * 3000) + " }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%99999999s' | format('a') }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ ('%s' * 30000) % (" + BIG + ",) }}",
    "{{ ('{0}' * 20000).format(" + BIG + ") }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ ('a\n' * 30000) | indent(99) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ [1] | batch(10**9, 0) | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ lipsum(10**9) }}",
    "{{ 1 | round(10**9, 'ceil') }}",
    "{{ 'a' | wordwrap(1) }}",
    "{{ range(60000) | map('replace', '', " + BIG + ") | list }}",
    "{% for i in range(60000) %}{% for x in messages | sort(attribute='role') %}{% endfor %}{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "+".join(["1"] * 30000) + " }}",
    "{{ a" + ".b" * 20000 + " }}",
    "{{ 1" + " if 1 else 2" * 5000 + " }}",
    "{{ not " * 10 + "not " * 5000 + "1 }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "{% for x in [1] %}" * 100 + "{% endfor %}" * 100,
    "{% set x = 1 %}" * 4000 + "{{ x",
    "{{ 1" + "|abs" * 10000 + " }}",
    "x" * (LONGEST_TEMPLATE + 1),
    "{{",
    "{% bogus %}",
    "{% for %}",
    "{{ 1 / 0 }}",
    "{{ 'a' + 1 }}",
    "{{ messages.x.y }}",
    "{{ messages | tojson(default=1) }}",
    "{{ raise_exception('a' * 9999) }}",
    "{{ raise_exception() }}",
    "{{ nothing | tojson }}",
    "{{ 'abc' | nothing }}",
    "{{ range(60000) | join(d=" + BIG + ") }}",
    "{{ 'aaaa' | replace(old='', new=" + BIG + ") | replace('a', " + BIG + ") }}",
    "".join("{% set a" + str(i) + " = 'a' * 60000 %}" for i in range(2000)),
    "{{ " + " and ".join([BIG + " in " + BIG] * 2500) + " }}{{",
    " " * 60000 + "{%",
    "{% raw %}" + "{%" * 28000,
    "{#" * 30000,
    "{{ '" + "\\" * 60000,
    "{{ " + "-" * 60000 + "1 }}",
    "{{ a }}" * 9000 + "{{",
    "{{ 'abc' is nothing }}",
]


class TestHostileTemplates:
    """A template is a program by a stranger."""

    def test_there_are_hundreds_of_payloads(self) -> None:
        assert len(set(PAYLOADS)) >= 500

    @pytest.mark.parametrize("start", range(0, len(PAYLOADS), 50))
    def test_none_reaches_python(self, start: int) -> None:
        for payload in PAYLOADS[start : start + 50]:
            refused(render, payload, {"messages": [USER], "bos_token": "<bos>"})

    @pytest.mark.parametrize("bomb", BOMBS, ids=[bomb[:40] for bomb in BOMBS])
    def test_none_eats_the_machine(self, bomb: str) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused(render, bomb, {"messages": [USER], "bos_token": "<bos>"})
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB

    def test_outputs_grow_with_the_conversation_only(self) -> None:
        template = "{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}"
        values = {"messages": [{"role": "user", "content": "a" * 10_000}]}
        assert "more than" in refused(render, template, values)
        assert len(render(template, {"messages": [{"role": "user", "content": "a" * 60}]})) == 60_000

    def test_values_in_a_circle_are_refused(self) -> None:
        circle: dict[str, Any] = {}
        circle["a"] = circle
        assert "too deeply" in refused(render, "a", {"circle": circle})

    def test_whoever_called_goes_on_after_a_bomb(self) -> None:
        refused(render, BOMBS[2], {})
        written = render(TEMPLATE, {"messages": [USER], "bos_token": "<bos>"})
        assert written == "<bos><start_of_turn>user\nWho are you?<end_of_turn>\n"

    @given(st.text("{}%-+ ~|()[].'\"_0123456789abfilnorstx\n", max_size=80))
    @settings(max_examples=300)
    def test_any_template_ends_in_a_text_or_a_sentence(self, template: str) -> None:
        try:
            written = render(template, {"messages": [USER], "x": "a", "b": 1})
        except InputError as error:
            written = str(error)
        assert isinstance(written, str)

    def test_values_are_weighed_with_everything_in_them(self) -> None:
        assert weight("abc") == 4
        assert weight([["ab"], {"k": "v"}, range(5), None]) == 1 + 4 + (1 + 2) + (2 + 2) + 5 + 0
        assert weight([[0] * 1000] * 1000, limit=5000) > 5000
