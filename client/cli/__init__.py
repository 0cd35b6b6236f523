"""The `pace` command: one file per group of verbs, loaded when it is used."""
