// One function for a family of entry points: makes a call of the input's bytes, and looks at what must hold of it.
#pragma once
#include "input.h"

void fuzz_rows(Input& input, int threads);      // row_scores, row_grads
void fuzz_options(Input& input, int threads);   // option_scores, option_grads
void fuzz_states(Input& input, int threads);    // row_states, merge_states, finish_states
void fuzz_draws(Input& input, int threads);     // draw_scores
void fuzz_heads(Input& input, int threads);     // head_scores
void fuzz_window(Input& input, int threads);    // cdf, select_probability
void fuzz_sum_tree(Input& input, int threads);  // sum_tree_build, sum_tree_update, sum_tree_sample
void fuzz_random(Input& input, int threads);    // normals, uniforms
