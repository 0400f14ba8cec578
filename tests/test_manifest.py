import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bot.slack.manifest import SCOPES, manifest
from bot.web.door import SLACK_PATH

ROOT = Path(__file__).parent.parent


def test_the_file_in_the_repository_is_what_the_code_says() -> None:
    """People paste the file into Slack, and `bot manifest` prints what the code says: one truth."""
    shipped = (ROOT / "manifest.json").read_text(encoding="utf-8")

    assert shipped == json.dumps(manifest(socket_mode=True), indent=2) + "\n"


def test_socket_mode_has_no_address() -> None:
    """With Socket Mode on Slack sends nothing over HTTP, and a left-over address would only mislead."""
    text = json.dumps(manifest(socket_mode=True))

    assert "url" not in text
    assert manifest(socket_mode=True)["settings"]["socket_mode_enabled"] is True


@pytest.mark.parametrize("address", ["https://bot.example.com", "https://bot.example.com/slack/events"])
def test_over_http_command_and_buttons_go_to_the_path_that_the_bot_listens_at(address: str) -> None:
    """A command that works beside buttons that lead nowhere is found out at the first approval."""
    made = manifest(socket_mode=False, request_url=address)

    (command,) = made["features"]["slash_commands"]
    assert command["url"] == "https://bot.example.com/slack/events"
    assert made["settings"]["interactivity"]["request_url"] == command["url"]
    assert made["settings"]["event_subscriptions"]["request_url"] == command["url"]
    assert made["settings"]["socket_mode_enabled"] is False
    assert urlsplit(command["url"]).path == SLACK_PATH


@pytest.mark.parametrize(
    "address",
    [
        "http://bot.example.com",
        "bot.example.com",
        "https://bot.example.com/other",
        "https://bot.example.com/?x=1",
        "https://bot.example.com/#x",
        "https://user:secret@bot.example.com",
        "https:///slack/events",
    ],
)
def test_an_address_that_slack_or_the_bot_would_not_answer_at_is_refused(address: str) -> None:
    """Slack takes only https, and the bot answers at one path."""
    with pytest.raises(ValueError, match="slack/events"):
        manifest(socket_mode=False, request_url=address)


def test_slack_reaches_the_app_in_one_way() -> None:
    """Both ways at once is a half-switched app, neither is one that nobody hears."""
    with pytest.raises(ValueError, match="not both"):
        manifest(socket_mode=True, request_url="https://bot.example.com")
    with pytest.raises(ValueError, match="not neither"):
        manifest(socket_mode=False)


def test_the_app_asks_for_no_more_than_it_uses() -> None:
    """Every scope is something a stolen token can do; none of these reads a message."""
    made = manifest(socket_mode=True)

    assert made["oauth_config"] == {"scopes": {"bot": list(SCOPES)}}
    assert set(SCOPES) == {
        "chat:write",
        "chat:write.public",
        "commands",
        "files:write",
        "im:write",
        "usergroups:read",
    }
    assert made["settings"]["event_subscriptions"]["bot_events"] == ["app_home_opened"]


def test_a_static_token_is_not_rotated_away() -> None:
    """A rotated token dies after twelve hours, and this bot is given its token once."""
    assert manifest(socket_mode=True)["settings"]["token_rotation_enabled"] is False


def test_direct_messages_can_arrive() -> None:
    """With the Messages tab off Slack answers `messages_tab_disabled`, and the last private way is closed."""
    app_home = manifest(socket_mode=True)["features"]["app_home"]

    assert app_home["messages_tab_enabled"] is True


def test_the_home_tab_is_there_and_the_bot_hears_of_its_opening() -> None:
    """Either without the other is a tab that stays empty."""
    made = manifest(socket_mode=True)

    assert made["features"]["app_home"]["home_tab_enabled"] is True
    assert "app_home_opened" in made["settings"]["event_subscriptions"]["bot_events"]


def test_the_names_fit_into_slacks_limits() -> None:
    """A manifest that Slack refuses ends the installation at its first step."""
    made = manifest(socket_mode=True)

    assert len(made["display_information"]["name"]) <= 35
    assert len(made["display_information"]["description"]) <= 140
    assert len(made["features"]["bot_user"]["display_name"]) <= 80
