"""The baseline of an ack: a Bolt app as its tutorial writes it, which does nothing but acknowledge.

gunicorn --workers 2 --threads 8 bare_bolt:application
"""

import os

from slack_bolt import Ack, App
from slack_bolt.adapter.wsgi import SlackRequestHandler
from slack_sdk import WebClient

app = App(
    client=WebClient(token=os.environ["BOT_TOKEN"], base_url=os.environ["SLACK_API_URL"]),
    signing_secret=os.environ["SLACK_SIGNING_SECRET"],
)


@app.command("/cancel")
def acknowledge(ack: Ack) -> None:
    ack("Request #1 is recorded.")


application = SlackRequestHandler(app, path="/slack/events")
