"""PubMedQA: does an abstract answer its title's question, yes, no or maybe; the most probable of the three words."""

from harness.evals.benchmarks import REAL, Benchmark

BENCHMARK = Benchmark(
    title="PubMedQA, expert-labelled questions",
    paper="Jin et al. 2019, arXiv 1909.06146",
    data="qiaojin/PubMedQA",
    licence="MIT",
    asks="an abstract and a question that its authors asked; yes, no or maybe",
    items=500,
    tasks="pubmedqa/pubmedqa.yaml",
    metric="acc",
    floor=1 / 3,
    tested=REAL,
    example=(
        "Abstract: Programmed cell death (PCD) is the regulated death of cells within an organism. [...]\n"
        "Question: Do mitochondria play a role in remodelling lace plant leaves during programmed cell death?\nAnswer:",
        "yes",
    ),
    changes={
        "dataset_path": "qiaojin/PubMedQA",
        "dataset_name": "pqa_labeled",
        "training_split": None,
        "validation_split": None,
        "test_split": "train",
        "doc_to_text": "Abstract: {{(contexts or context.contexts)|join('\n')}}\nQuestion: {{question}}\nAnswer:",
        "doc_to_target": "final_decision",
    },
    deviation="from the hub all 1,000 labelled questions are scored, as it has one split; the official test is 500 of "
    "them, the rows of pubmedqa_test.jsonl; lm-eval's own source of the data can no longer be loaded",
)
