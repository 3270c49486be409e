"""LongVILA's five stages of training as files of settings, and the command that runs them one after another."""
