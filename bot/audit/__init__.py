"""What is made of the audit for people outside of the database: signed checkpoints, archives, packs and reports."""
