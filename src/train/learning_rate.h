// Learning-rate schedules: a warmup, linear from 0, then
//
//     constant   learning_rate
//     cosine     down a half cosine to min_lr_ratio · learning_rate at the last step
//     wsd        warmup, stable, decay: constant, then linear down to min_lr_ratio · learning_rate
//                over the last lr_decay_ratio of all steps (Hu et al. 2024, "MiniCPM")
//
// The first step is step 1 and already learns: with W warmup steps its rate is learning_rate / W.
#pragma once
#include <cstdint>

#include "core/config.h"

namespace picotron {

// Of update number `step`, from 1 to training.total_train_steps.
double learning_rate(const Training& training, int64_t step);

}  // namespace picotron
