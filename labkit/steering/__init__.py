"""Steering: a direction in the residual stream, found from pairs of prompts and added while the model writes.

The vector is the mean output of a layer for the positive prompts minus that for the negative ones (Turner et al. 2023,
"Steering language models with activation engineering"; Rimsky et al. 2024, "Steering Llama 2 via contrastive activation
addition"), or what their differences have in common (Zou et al. 2023). `lm.steer(vector, strength)` adds it to that
layer's output at every position: those of the prompt and, in generation, each new one. Whether a change of the text is
due to *this* direction shows in comparison with a random one of the same norm, `vector.random()`. What the direction is
needed for shows when it is projected out of every layer, `lm.steer(vector, manner="project_out")` (Arditi et al. 2024,
arXiv:2406.11717).
"""
