"""lm-eval's own command line with the model `ahn` and this package's tasks.

`python -m ahn.evaluation` takes the commands and options of `lm_eval`:
`python -m ahn.evaluation --model ahn --model_args pretrained=...,memory=... --tasks ...`,
`python -m ahn.evaluation ls tasks`. Over several devices:
`accelerate launch -m ahn.evaluation ...`.
"""

from ahn.evaluation.lm_eval_command import main

if __name__ == "__main__":
    main()
