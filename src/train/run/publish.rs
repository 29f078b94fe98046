//! The end of a run: the adapter is published, and the run is summed up.

use serde_json::json;

use super::Training;
use crate::error::Result;
use crate::formats::atomic::write_file;
use crate::formats::checkpoint;
use crate::session::Notice;
use crate::session::memory::peak_bytes;
use crate::tensor::Real;
use crate::train::checkpoint as state_files;
use crate::train::event::{Event, Summary};
#[cfg(feature = "plot")]
use crate::train::plot;

impl<T: Real<Stat = f32>> Training<'_, T> {
    /// Publishes the adapter of trainee `index` and sums up.
    pub(super) fn finish(&mut self, index: usize, watch: &mut dyn FnMut(Event<'_>)) -> Result<Summary> {
        let config = self.config;
        let device = &self.prepared.device;
        self.save(index, watch)?;
        let trainee = &mut self.trainees[index];
        let best = trainee.state.best_model_checkpoint.as_ref().map(|name| config.output_dir.join(name));
        if let (true, Some(best)) = (config.load_best_model_at_end, &best)
            && trainee.state.best_global_step != Some(trainee.state.global_step)
        {
            checkpoint::open(best)?;
            state_files::load_adapter(best, device, &mut trainee.trainable)?;
            watch(Event::Notice(Notice::Note(format!("the final adapter is that of {}", best.display()))));
        }
        self.check_surroundings()?;
        let trainee = &mut self.trainees[index];
        state_files::publish(config, device, &trainee.trainable)?;
        let train_runtime = self.start.elapsed().as_secs_f64();
        let tokens_per_second = trainee.all.tokens_per_second();
        let sol = trainee.all.sol(self.peak);
        let peak_bytes = peak_bytes(device, &self.prepared.decoder.weights);
        let mut row = json!({
            "step": trainee.state.global_step,
            "epoch": trainee.state.epoch,
            "train_loss": trainee.all.mean_loss(),
            "train_runtime": train_runtime,
            "train_tokens_per_second": tokens_per_second,
            "num_input_tokens_seen": trainee.state.num_input_tokens_seen,
            "total_flos": trainee.state.total_flos,
            "peak_tensor_bytes": peak_bytes,
        });
        if let Some(sol) = sol {
            row["train_sol"] = json!(sol);
        }
        trainee.log.write(&row)?;
        let state = config.output_dir.join("trainer_state.json");
        write_file(&state, trainee.state.to_json().as_bytes())?;
        #[cfg(feature = "plot")]
        plot::loss_curve(&config.output_dir.join("loss.svg"), &trainee.state.log_history)?;
        Ok(Summary {
            global_step: trainee.state.global_step,
            train_loss: trainee.all.mean_loss(),
            best_metric: trainee.state.best_metric,
            best_model_checkpoint: best,
            eval: trainee.last_eval,
            empty_steps: trainee.state.empty_steps,
            stopped_early: trainee.stopped_early,
            train_runtime,
            tokens_per_second,
            sol,
            peak_bytes,
        })
    }
}
