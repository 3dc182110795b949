"""What makes a shell complete `hf-tfm`: its commands, and the options of each. Imports nothing that takes time."""

from collections.abc import Mapping, Sequence


_SCRIPT = """_hf_tfm() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [ "${{word#-}}" != "$word" ]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _hf_tfm hf-tfm
"""


def completion_script(options: Mapping[str, Sequence[str]], shell: str) -> str:
    """
    A script for `bash` or `zsh`; where no command or option fits, files are completed.

    Args:
        options: of each command, by its name.
    """
    cases = "\n".join(f'            {name}) words="{" ".join(several)}" ;;' for name, several in options.items())
    script = _SCRIPT.format(commands=" ".join(options), cases=cases)
    if shell == "zsh":
        return "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + script
    return script
