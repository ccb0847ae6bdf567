"""Completion scripts: commands, presets after `train`, suites after --suite, options, and files."""

from collections.abc import Iterable


def script(shell: str, commands: Iterable[str]) -> str:
    from eval.validity.open import OPEN_SUITES
    from eval.validity.suites import suite_names
    from mtp.heads import NAMES
    from training.config import known_keys, preset_names

    words = {
        "COMMANDS": " ".join(commands),
        "PRESETS": " ".join(preset_names()),
        "SUITES": " ".join([*suite_names(), *OPEN_SUITES]),
        "HEADS": " ".join(NAMES),
        "FIELDS": " ".join(["--run-dir", "--quiet", *(f"--{key.replace('_', '-')}" for key in known_keys())]),
    }
    text = {"bash": BASH, "zsh": ZSH + BASH, "fish": FISH}[shell]
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


BASH = """\
_leaplm() {
  local word="${COMP_WORDS[COMP_CWORD]}" last="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="@COMMANDS@"
  elif [ "$last" = --suite ] || [ "$last" = --data.suite ]; then words="@SUITES@"
  elif [ "$last" = --head.name ] || [ "$last" = --heads ]; then words="@HEADS@"
  elif [ "$command" = train ] && [ "$COMP_CWORD" -eq 2 ]; then words="@PRESETS@"
  elif [ "$command" = train ] && [ "${word#-}" != "$word" ]; then words="@FIELDS@"
  elif [ "$command" = data ] && [ "$COMP_CWORD" -eq 2 ]; then words="list get"
  elif [ "$command" = completion ]; then words="bash zsh fish"
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _leaplm leaplm
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
FISH = """\
complete -c leaplm -n __fish_use_subcommand -f -a "@COMMANDS@"
complete -c leaplm -n "__fish_seen_subcommand_from train; and test (count (commandline -opc)) -eq 2" -f -a "@PRESETS@"
complete -c leaplm -n "__fish_seen_subcommand_from probe" -l suite -x -a "@SUITES@"
complete -c leaplm -n "__fish_seen_subcommand_from train" -l head.name -x -a "@HEADS@"
complete -c leaplm -n "__fish_seen_subcommand_from data" -f -a "list get"
complete -c leaplm -n "__fish_seen_subcommand_from completion" -f -a "bash zsh fish"
"""
