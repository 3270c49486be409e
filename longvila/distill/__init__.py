"""A Llama or Qwen2 folder made into a hybrid, most of whose layers mix tokens by `ssd`: MOHAWK's three stages.

    orient     each layer alone: its matrix against softmax(Q K^T)         teacher's hidden states in
    align      each layer alone: its output against the attention's        teacher's hidden states in
    transfer   the whole student: its next tokens against the teacher's    MLPs, norms, embeddings and head copied

Layers of the first two stages need nothing of each other: `plan distill pack` deals them out to workers. Their
distances say which layers had better keep attention: `plan distill keep`.
"""
