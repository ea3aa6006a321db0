"""Ask: what a person has -> text, in one call. `pipeline` finds the files; a task has a file of its own."""
