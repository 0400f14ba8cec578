"""A Slack bot that cancels orders on the Upbit exchange: asked for, approved, sent, proven and written down.

The floors, each importing only what is above it here:

    domain      what a cancel request is: states, policy, audit events. Standard library only
    workflow    the story of one request, and the ports it needs
    inquiry     what people ask about requests, beside the workflow
    choosing    the form to choose an order in, beside it as well
    home        the page of one person, likewise
    slack       listeners, messages, views, notifier
    upbit       signing and the client
    database    tables, store, audit log, migrations' runner
    web         the HTTP door and the server
    worker      runs what is due
    app         wires it all from settings
    __main__    the command line

`playground` stands apart: a Slack workspace and an Upbit exchange on loopback, for the demo and the tests.
"""
