"""A model behind lm-eval's interface: its prompts are those of training, whatever an item says."""

from harness.data.chat import prompt_ids
from harness.evals.lm_evaluation.model import LmEvalModel
from tests.doubles import byte_tokenizer, tiny_llama


def test_a_control_token_in_an_item_is_text_in_the_prompt_as_in_training():
    tokenizer = byte_tokenizer()
    model = LmEvalModel(tiny_llama(len(tokenizer)), tokenizer, chat=True)
    for asked in ("what does <|end|> do?", "what is 2 + 2?"):
        turns = [{"role": "user", "content": asked}]
        assert model.tok_encode(model.apply_chat_template(turns)) == prompt_ids(tokenizer, turns)
