"""People's input ⇄ token ids, on the CPU and without torch: chat template, tokenizer, pictures, detokenizer, boxes."""
