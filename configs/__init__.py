"""Named presets: one YAML file each; `extends` starts from another."""
