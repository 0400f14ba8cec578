"""Blocks: what Slack refuses in them, and how they read in words. Pure functions.

https://docs.slack.dev/reference/block-kit/blocks and …/block-elements and …/composition-objects
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from bot.playground.slack_records import Block

Surface = Literal["message", "modal", "home"]

MESSAGE_BLOCKS = 50
VIEW_BLOCKS = 100
HEADER_TEXT = 150
SECTION_TEXT = 3000
SECTION_FIELDS = 10
FIELD_TEXT = 2000
CONTEXT_ELEMENTS = 10
ACTIONS_ELEMENTS = 25
BUTTON_TEXT = 75
BUTTON_VALUE = 2000
BUTTON_URL = 3000
ID = 255
CONFIRM_TITLE = 100
CONFIRM_TEXT = 300
CONFIRM_LABEL = 30
OPTION_TEXT = 75
OPTION_VALUE = 150
OPTION_GROUPS = 100
PLACEHOLDER = 150
LABEL = 2000
INPUT_TEXT = 3000
MARKDOWN_TEXT = 12_000
VIEW_TITLE = 24
PRIVATE_METADATA = 3000

PLAIN = ("plain_text",)
ANY_TEXT = ("plain_text", "mrkdwn")

#: block type -> its fields beside `type` and `block_id`
BLOCK_FIELDS: dict[str, set[str]] = {
    "actions": {"elements"},
    "context": {"elements"},
    "divider": set(),
    "header": {"text"},
    "image": {"image_url", "slack_file", "alt_text", "title"},
    "input": {"label", "element", "hint", "optional", "dispatch_action"},
    "markdown": {"text"},
    "section": {"text", "fields", "accessory", "expand"},
}

_SELECT = {"placeholder", "confirm", "focus_on_load"}
#: element type -> its fields beside `type` and `action_id`
ELEMENT_FIELDS: dict[str, set[str]] = {
    "button": {"text", "value", "url", "style", "confirm", "accessibility_label"},
    "checkboxes": {"options", "initial_options", "confirm", "focus_on_load"},
    "overflow": {"options", "confirm"},
    "plain_text_input": {
        "placeholder",
        "initial_value",
        "multiline",
        "min_length",
        "max_length",
        "dispatch_action_config",
        "focus_on_load",
    },
    "radio_buttons": {"options", "initial_option", "confirm", "focus_on_load"},
    "static_select": _SELECT | {"options", "option_groups", "initial_option"},
    "users_select": _SELECT | {"initial_user"},
}
CLICKABLE = frozenset(ELEMENT_FIELDS) - {"plain_text_input"}
IN_INPUT = frozenset(ELEMENT_FIELDS) - {"button", "overflow"}
MOST_OPTIONS = {"static_select": 100, "overflow": 5, "radio_buttons": 10, "checkboxes": 10}


def faults(blocks: object, *, surface: Surface = "message") -> list[str]:
    """What Slack would refuse, a sentence and a JSON pointer each; empty when all is well."""
    check = _Check()
    check.blocks(blocks, most=MESSAGE_BLOCKS if surface == "message" else VIEW_BLOCKS, surface=surface)
    return check.found


def view_faults(view: Mapping[str, Any]) -> list[str]:
    """The same for a modal or a Home tab (https://docs.slack.dev/reference/views/modal-views)."""
    check = _Check()
    modal = view.get("type") == "modal"
    if view.get("type") not in {"modal", "home"}:
        check.say("/type", "must be modal or home")
    for key in ("title", "submit", "close"):
        if key in view or (modal and key == "title"):
            check.text(view.get(key), f"/{key}", longest=VIEW_TITLE)
    check.string(view, "private_metadata", "", longest=PRIVATE_METADATA, required=False)
    check.string(view, "callback_id", "", longest=ID, required=False)
    check.string(view, "external_id", "", longest=ID, required=False)
    blocks = view.get("blocks")
    check.blocks(blocks, most=VIEW_BLOCKS, surface="modal" if modal else "home")
    if modal and "submit" not in view and any(_type(block) == "input" for block in _list(blocks)):
        check.say("/submit", "is required where there are input blocks")
    return check.found


def with_ids(blocks: Sequence[Block], new_id: Callable[[], str]) -> tuple[Block, ...]:
    """The blocks with the block_ids and action_ids that Slack generates where there are none."""

    def named(element: Block) -> Block:
        return {"action_id": new_id(), **element} if _type(element) in ELEMENT_FIELDS else element

    def completed(block: Block) -> Block:
        whole: dict[str, Any] = {"block_id": new_id(), **block}
        if "elements" in whole:
            whole["elements"] = [named(element) for element in whole["elements"]]
        for key in ("accessory", "element"):
            if key in whole:
                whole[key] = named(whole[key])
        return whole

    return tuple(completed(block) for block in blocks)


def length_of(blocks: Iterable[Block]) -> int:
    """How many characters of text the blocks hold together."""
    return sum(len(text) for text in _texts(list(blocks)))


class _Check:
    """Walks over blocks and collects what is wrong."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def say(self, pointer: str, what: str) -> None:
        self.found.append(f"[ERROR] {what} [json-pointer:{pointer}]")

    def blocks(self, blocks: object, *, most: int, surface: Surface) -> None:
        if not isinstance(blocks, list):
            self.say("/blocks", "must be an array of blocks")
            return
        if len(blocks) > most:
            self.say("/blocks", f"no more than {most} items allowed")
        seen: set[str] = set()
        for position, block in enumerate(blocks):
            pointer = f"/blocks/{position}"
            if not isinstance(block, dict) or block.get("type") not in BLOCK_FIELDS:
                self.say(pointer, f"unsupported type: {_type(block)}")
                continue
            self.fields(block, pointer, BLOCK_FIELDS[block["type"]] | {"block_id"})
            self.identifier(block, "block_id", pointer, seen)
            self.block(block, pointer, surface)

    def block(self, block: dict[str, Any], pointer: str, surface: Surface) -> None:
        match block["type"]:
            case "header":
                self.text(block.get("text"), f"{pointer}/text", longest=HEADER_TEXT)
            case "section":
                self.section(block, pointer)
            case "context":
                self.context(block, pointer)
            case "actions":
                self.actions(block, pointer)
            case "image":
                self.image(block, pointer)
            case "input":
                self.input(block, pointer)
            case "markdown":
                if surface != "message":
                    self.say(pointer, "markdown blocks are for messages only")
                self.string(block, "text", pointer, longest=MARKDOWN_TEXT)
            case _:
                return  # a divider has nothing in it

    def section(self, block: dict[str, Any], pointer: str) -> None:
        if "text" not in block and "fields" not in block:
            self.say(pointer, "a section needs text or fields")
        if "text" in block:
            self.text(block["text"], f"{pointer}/text", longest=SECTION_TEXT, kinds=ANY_TEXT)
        if "fields" in block:
            for each, field in self.items(block, "fields", pointer, most=SECTION_FIELDS):
                self.text(field, each, longest=FIELD_TEXT, kinds=ANY_TEXT)
        if "accessory" in block:
            self.element(block["accessory"], f"{pointer}/accessory", CLICKABLE | {"image"}, set())

    def context(self, block: dict[str, Any], pointer: str) -> None:
        for each, element in self.items(block, "elements", pointer, most=CONTEXT_ELEMENTS):
            if _type(element) == "image":
                self.element(element, each, frozenset({"image"}), set())
            else:
                self.text(element, each, longest=SECTION_TEXT, kinds=ANY_TEXT)

    def actions(self, block: dict[str, Any], pointer: str) -> None:
        # Two buttons of one block must differ; the same action_id in another block is legal.
        seen: set[str] = set()
        for each, element in self.items(block, "elements", pointer, most=ACTIONS_ELEMENTS):
            self.element(element, each, CLICKABLE, seen)

    def input(self, block: dict[str, Any], pointer: str) -> None:
        self.text(block.get("label"), f"{pointer}/label", longest=LABEL)
        if "hint" in block:
            self.text(block["hint"], f"{pointer}/hint", longest=LABEL)
        self.element(block.get("element"), f"{pointer}/element", IN_INPUT, set())

    def image(self, block: dict[str, Any], pointer: str) -> None:
        if "image_url" not in block and "slack_file" not in block:
            self.say(pointer, "an image needs image_url or slack_file")
        self.string(block, "alt_text", pointer, longest=LABEL)

    def element(self, element: object, pointer: str, allowed: Iterable[str], seen: set[str]) -> None:
        kind = _type(element)
        if not isinstance(element, dict) or kind not in allowed:
            self.say(pointer, f"unsupported type here: {kind}")
            return
        if kind == "image":
            self.image(element, pointer)
            return
        self.fields(element, pointer, ELEMENT_FIELDS[kind] | {"action_id"})
        self.identifier(element, "action_id", pointer, seen)
        if kind == "button":
            self.button(element, pointer)
        if kind in MOST_OPTIONS:
            self.options(element, pointer, most=MOST_OPTIONS[kind])
        if "placeholder" in element:
            self.text(element["placeholder"], f"{pointer}/placeholder", longest=PLACEHOLDER)
        if "confirm" in element:
            self.confirm(element["confirm"], f"{pointer}/confirm")
        if element.get("max_length", 1) not in range(1, INPUT_TEXT + 1):
            self.say(f"{pointer}/max_length", f"must be between 1 and {INPUT_TEXT}")

    def button(self, element: dict[str, Any], pointer: str) -> None:
        self.text(element.get("text"), f"{pointer}/text", longest=BUTTON_TEXT)
        self.string(element, "value", pointer, longest=BUTTON_VALUE, required=False)
        self.string(element, "url", pointer, longest=BUTTON_URL, required=False)
        self.string(element, "accessibility_label", pointer, longest=BUTTON_TEXT, required=False)
        if element.get("style", "primary") not in {"primary", "danger"}:
            self.say(f"{pointer}/style", "must be primary or danger")

    def options(self, element: dict[str, Any], pointer: str, *, most: int) -> None:
        if "option_groups" in element:
            if "options" in element:
                self.say(f"{pointer}/option_groups", "options or option_groups, not both")
            for each, group in self.items(element, "option_groups", pointer, most=OPTION_GROUPS):
                if not isinstance(group, dict):
                    self.say(each, "must be an option group")
                    continue
                self.fields(group, each, {"label", "options"}, typed=False)
                self.text(group.get("label"), f"{each}/label", longest=OPTION_TEXT)
                self.options({"type": element["type"], "options": group.get("options")}, each, most=most)
            return
        kinds = ANY_TEXT if element["type"] in {"radio_buttons", "checkboxes"} else PLAIN
        for each, option in self.items(element, "options", pointer, most=most):
            if not isinstance(option, dict):
                self.say(each, "must be an option object")
                continue
            self.text(option.get("text"), f"{each}/text", longest=OPTION_TEXT, kinds=kinds)
            self.string(option, "value", each, longest=OPTION_VALUE)
            if "description" in option:
                self.text(option["description"], f"{each}/description", longest=OPTION_TEXT, kinds=kinds)

    def confirm(self, confirm: object, pointer: str) -> None:
        if not isinstance(confirm, dict):
            self.say(pointer, "must be a confirmation dialog")
            return
        self.fields(confirm, pointer, {"title", "text", "confirm", "deny", "style"}, typed=False)
        self.text(confirm.get("title"), f"{pointer}/title", longest=CONFIRM_TITLE)
        self.text(confirm.get("text"), f"{pointer}/text", longest=CONFIRM_TEXT, kinds=ANY_TEXT)
        self.text(confirm.get("confirm"), f"{pointer}/confirm", longest=CONFIRM_LABEL)
        self.text(confirm.get("deny"), f"{pointer}/deny", longest=CONFIRM_LABEL)
        if confirm.get("style", "primary") not in {"primary", "danger"}:
            self.say(f"{pointer}/style", "must be primary or danger")

    def text(self, text: object, pointer: str, *, longest: int, kinds: tuple[str, ...] = PLAIN) -> None:
        if not isinstance(text, dict):
            self.say(pointer, "must be a text object")
            return
        if text.get("type") not in kinds:
            self.say(f"{pointer}/type", f"must be {' or '.join(kinds)}")
        self.fields(text, pointer, {"text", "emoji", "verbatim"})
        self.string(text, "text", pointer, longest=longest)

    def string(self, holder: Mapping[str, Any], key: str, pointer: str, *, longest: int, required: bool = True) -> None:
        value = holder.get(key)
        if value is None and not required:
            return
        if not isinstance(value, str) or (required and not value):
            self.say(f"{pointer}/{key}", "must be more than 0 characters")
        elif len(value) > longest:
            self.say(f"{pointer}/{key}", f"must be less than {longest + 1} characters")

    def identifier(self, holder: dict[str, Any], key: str, pointer: str, seen: set[str]) -> None:
        self.string(holder, key, pointer, longest=ID, required=False)
        name = holder.get(key)
        if isinstance(name, str):
            if name in seen:
                self.say(f"{pointer}/{key}", f"{key} must be unique: {name}")
            seen.add(name)

    def items(self, holder: dict[str, Any], key: str, pointer: str, *, most: int) -> Iterator[tuple[str, object]]:
        values = holder.get(key)
        if not isinstance(values, list) or not values:
            self.say(f"{pointer}/{key}", "must be an array of at least 1 item")
            return
        if len(values) > most:
            self.say(f"{pointer}/{key}", f"no more than {most} items allowed")
        for position, value in enumerate(values):
            yield f"{pointer}/{key}/{position}", value

    def fields(self, holder: dict[str, Any], pointer: str, allowed: set[str], *, typed: bool = True) -> None:
        for key in sorted(set(holder) - allowed - ({"type"} if typed else set())):
            self.say(f"{pointer}/{key}", "is not a field of this object")


def in_words(blocks: Iterable[Block], name_of: Callable[[str], str] = str) -> list[str]:
    """The lines that a person reads: fields under each other, buttons in [brackets]."""
    return [line for block in blocks for line in _block_in_words(block, name_of)]


def _block_in_words(block: Block, name_of: Callable[[str], str]) -> list[str]:
    match block["type"]:
        case "divider":
            words = "────────"
        case "actions":
            words = " ".join(_element_in_words(element, name_of) for element in block["elements"])
        case "context":
            words = "  ·  ".join(_element_in_words(element, name_of) for element in block["elements"])
        case "image":
            words = f"({block['alt_text']})"
        case "input":
            optional = " (optional)" if block.get("optional") else ""
            words = f"{plain(block['label']['text'], name_of)}{optional}: ______"
        case "markdown":
            words = block["text"]
        case _:
            return _section_in_words(block, name_of)
    return words.splitlines()


def _section_in_words(block: Block, name_of: Callable[[str], str]) -> list[str]:
    lines = plain(block["text"]["text"], name_of).splitlines() if "text" in block else []
    lines += [_field_in_words(plain(field["text"], name_of)) for field in block.get("fields", ())]
    return [*lines, _element_in_words(block["accessory"], name_of)] if "accessory" in block else lines


def _field_in_words(words: str) -> str:
    """A field is a label above its value; in words they stand on one line."""
    label, *rest = words.splitlines()
    return f"{label.rstrip(':')}: {' '.join(rest)}" if rest else label


def _element_in_words(element: Block, name_of: Callable[[str], str]) -> str:
    match element.get("type"):
        case "button":
            return f"[{element['text']['text']}]"
        case "plain_text" | "mrkdwn":
            return plain(element["text"], name_of)
        case "image":
            return f"({element['alt_text']})"
        case _:
            labels = [option["text"]["text"] for option in element.get("options", ())]
            return f"[{' | '.join(labels) or element.get('placeholder', {}).get('text', '…')} ▾]"


_ANGLED = re.compile(r"<([@#!]?)([^<>|]+)(?:\|([^<>]*))?>")
_BOLD = re.compile(r"(?<![\w*])\*([^*\n]+)\*(?![\w*])")


def plain(text: str, name_of: Callable[[str], str] = str) -> str:
    """Slack's mrkdwn as it reads on the screen (https://docs.slack.dev/messaging/formatting-message-text)."""

    def shown(match: re.Match[str]) -> str:
        sign, target, label = match.groups()
        if sign == "@":
            return "@" + name_of(target)
        if sign == "#":
            return "#" + name_of(target)
        if sign == "!":
            subteam = target.partition("^")[2] if target.startswith("subteam^") else ""
            return label or "@" + (name_of(subteam) if subteam else target)
        return f"{label} ({target})" if label else target

    words = _BOLD.sub(r"\1", _ANGLED.sub(shown, text))
    return words.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        text = node.get("text")
        if isinstance(text, str):
            yield text
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value)


def _type(thing: object) -> str:
    return str(thing.get("type")) if isinstance(thing, Mapping) else type(thing).__name__


def _list(thing: object) -> list[Any]:
    return thing if isinstance(thing, list) else []
