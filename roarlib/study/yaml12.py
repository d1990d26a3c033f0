"""YAML 1.2: `1e-3` is a number, `no` is text, and a key given twice is an error.

PyYAML reads YAML 1.1, where 010 is 8, 1:30 is 90, `1e-3` is text, `no` is false, and of two equal keys the last wins.
"""

import re
from collections.abc import Hashable

import yaml

FORMS = {  # the core schema, https://yaml.org/spec/1.2.2/#103-core-schema; all else is text
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


def load(text: bytes) -> object:
    """The values in a file's bytes: lists, dicts, strings, numbers, booleans and None, never any other object.

    Anything else, aliases and tags included, raises a ValueError of one line, which names the line of the file.
    """
    try:
        return yaml.load(text.decode("utf-8-sig"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"line {_line(text[: error.start])}: not readable as YAML: this is not UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = _line(text.decode("utf-8-sig")[: error.position].encode())
        raise ValueError(f"line {line}: not readable as YAML: the character {chr(error.character)!r}") from None
    except yaml.MarkedYAMLError as error:
        begun = f"{error.context} from line {error.context_mark.line + 1}: " if error.context_mark else ""
        problem = " ".join(f"{begun}{error.problem}".split())
        raise ValueError(f"line {error.problem_mark.line + 1}: not readable as YAML: {problem}") from None
    except RecursionError:
        raise ValueError("not readable as YAML: nested too deeply") from None


def dump(values: object, **form) -> str:
    """YAML that `load` and any reader of YAML 1.1 read as the same values. form: keywords of yaml.dump."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, **form)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):  # a small file of aliases can expand to gigabytes
            name = f"*{event.anchor}"
            raise _wrong(event, f"{name} needs quotes, '{name}'; without them it is an alias, which is not read here")
        if tag := getattr(event, "tag", None):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            raise _wrong(event, f"not readable as YAML: {tag} is a tag, which is not read here; a text needs quotes")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and lines.setdefault(key, key_node) is not key_node:
                first = lines[key].start_mark.line + 1
                raise _wrong(key_node, f"the key '{key}' is given twice, first in line {first}")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        text = node.value
        if re.match(r"[-+]?0o?[0-9]", text):  # octal to some readers, decimal to others
            meant = int(text, 8 if "o" in text else 10)
            raise _wrong(node, f"{text} starts with a zero; write {meant}, or '{text}' in quotes if it is a text")
        return int(text, 0)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that either version of YAML would read as something else."""

    def ignore_aliases(self, data):
        return True


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _form in FORMS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_form})\Z"), None)


def _line(before: bytes) -> int:
    return before.count(b"\n") + 1


def _wrong(at: yaml.Event | yaml.Node, what: str) -> ValueError:
    return ValueError(f"line {at.start_mark.line + 1}: {what}")
