"""Records as a run reports them."""

TRAINING = {
    "step": 1200,
    "run/progress": 0.3,
    "train/loss": 1.25,
    "train/loss_ce": 1.5,
    "train/loss_mlm": 2.0,
    "perf/tokens_per_second": 12345.6,
    "eta_seconds": 3725.0,
}
EVALUATION = {
    "eval/mlm_loss": 2.5,
    "eval/mlm_accuracy": 0.5125,
    "eval/kl_to_teacher": 0.75,
    "eval/teacher_agreement": 0.625,
}
TRAINING_TEXT = "step  1,200   30.0%  loss 1.2500 (ce 1.5000  mlm 2.0000)  12,346 tokens/s  1:02:05 left"
