"""What ``mbretrieve bench`` runs: figures measured here, on what the user has. It stands below the command line."""
