"""HTTP: the door that every request passes, and the pages that say whether the bot is well."""
