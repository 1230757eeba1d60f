"""The recipes that come with robustlit: YAML files, found by the command line through their folder."""
