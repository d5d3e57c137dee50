"""DROP: questions on a passage that need counting, sorting or arithmetic; F1 of words with the right answer."""

from harness.evals.benchmarks import INVENTED, Benchmark

BENCHMARK = Benchmark(
    title="DROP, discrete reasoning over paragraphs",
    paper="Dua et al. 2019, arXiv 1903.00161",
    data="EleutherAI/drop",
    licence="CC-BY-SA-4.0",
    asks="a passage and a question; F1 of the answer's words against the best of the right answers",
    items=9_536,
    split="validation",
    tasks="drop/default.yaml",
    metric="f1",
    floor=0.0,
    tested=INVENTED,
    example=("Passage: The Lions won 21 to 14. (invented)\nQuestion: By how many points did they win?\nAnswer:", "7"),
    shots=3,
    stop=("\n",),
    max_new_tokens=100,
    cluster="passage",
    changes={
        "doc_to_text": "Passage: {{passage}}\nQuestion: {{question}}\nAnswer:",
        "doc_to_target": "{{ (answers if answers is defined else answer)[0]|join(', ') }}",
        "target_delimiter": " ",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n", "split": "train"},
    },
    deviation="the prompt names passage and question, the answer ends with its line, and the examples are the first "
    "of the train split; lm-eval gives none and ends at the first full stop",
)
