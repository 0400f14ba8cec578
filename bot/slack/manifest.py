"""The Slack app's manifest: what the app may do, and where Slack finds it.

https://docs.slack.dev/reference/app-manifest
"""

from typing import Any, Final
from urllib.parse import urlsplit

SLACK_PATH: Final = "/slack/events"

SCOPES: Final = (
    "chat:write",  # cards, summaries, private answers; with a user's id as the channel also direct messages
    "chat:write.public",  # cards in public channels that nobody invited the bot to
    "commands",  # /cancel
    "files:write",  # the files of /cancel export
    "im:write",  # the direct messages that they go to
    "usergroups:read",  # who is in the user groups of APPROVERS, REQUESTERS and AUDITORS
)


def manifest(*, socket_mode: bool, request_url: str | None = None) -> dict[str, Any]:
    """The manifest of an app that Slack reaches over Socket Mode, or over HTTP at `request_url`.

    `request_url` may be just the host's address: Slack's path is added then.
    """
    if socket_mode != (request_url is None):
        raise ValueError("either Socket Mode or a request URL, not both and not neither")
    where = {} if request_url is None else {"url": _with_path(request_url)}
    return {
        "display_information": {
            "name": "Upbit cancel bot",
            "description": "Cancels orders on the Upbit exchange, with approval and an audit.",
            "background_color": "#093687",
        },
        "features": {
            # With the Messages tab off Slack refuses the bot's direct messages. It does not read what is written there.
            "app_home": {
                "home_tab_enabled": True,
                "messages_tab_enabled": True,
                "messages_tab_read_only_enabled": True,
            },
            "bot_user": {"display_name": "upbit-cancel-bot", "always_online": True},
            "slash_commands": [
                {
                    "command": "/cancel",
                    **where,
                    "description": "Ask for an Upbit order to be canceled",
                    "usage_hint": "[order uuid] [reason], or: status, open, history, help",
                    "should_escape": False,
                }
            ],
        },
        "oauth_config": {"scopes": {"bot": list(SCOPES)}},
        "settings": {
            "event_subscriptions": {
                **{f"request_{name}": url for name, url in where.items()},
                "bot_events": ["app_home_opened"],  # who looks at their Home tab; tells nothing else
            },
            "interactivity": {"is_enabled": True, **{f"request_{name}": url for name, url in where.items()}},
            "org_deploy_enabled": False,
            "socket_mode_enabled": socket_mode,
            "token_rotation_enabled": False,
        },
    }


def _with_path(address: str) -> str:
    url = urlsplit(address)
    if url.scheme != "https" or not url.hostname or url.query or url.fragment or url.username is not None:
        raise ValueError("Slack needs a public address, such as https://bot.example.com/slack/events")
    if url.path not in {"", "/", SLACK_PATH}:
        raise ValueError(f"the bot listens at {SLACK_PATH}: leave the path out, or let it be this one")
    return f"https://{url.netloc}{SLACK_PATH}"
