"""Slack: what the bot hears there, what it says there, and how that is delivered."""
