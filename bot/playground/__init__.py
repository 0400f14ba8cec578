"""A Slack workspace and an Upbit exchange on loopback, for the demo and the tests."""
