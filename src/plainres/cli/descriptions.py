"""Texts that --help prints about the commands."""

TRAIN = """\
usage: plainres train [OVERRIDES] [-m] [--dry-run] [--json] [--cfg job]
                      [--config-dir FOLDER]

Train one network, or every run of a sweep. A run is kept in
<runs>/<study>/<name>, and its name follows from its configuration. A finished
run is not trained again. After an interruption, run the same command again to
resume.

  plainres train model.depth=20 model/shortcut=plain        one run
  plainres train -m model.depth=8,20,56 seed=0,1,2          a sweep
  plainres train experiment=digits                          a predefined sweep
  plainres train experiment=digits model.depth=8,20 seed=0  a part of it

overrides:
  group=option         use a file of conf/, as in model/shortcut=plain
                       (plainres list shows all of them)
  path.to.key=value    set a value, as in optim.lr=0.05
                       (plainres train --cfg job shows all of them)

common overrides:
  model.depth=20 model.width=16 model/shortcut=identity   the network
  data=cifar10 optim=he2015 optim.epochs=10 optim.lr=0.1  data and recipe
  trainer=gpu precision=bf16-mixed                        the hardware
  study=NAME runs=FOLDER logger=wandb                     the record of the runs
  sweep.retry_failed=true                                 retry failed runs

options:
  -m, --multirun       train every combination of comma-separated values; an
                       experiment implies it
  --dry-run            check everything, list the runs and their states, and
                       estimate their time; train nothing
  --json               print one JSON object about the runs when all are done
  --cfg job            print the configuration, train nothing
  --info defaults      print the files of conf/ that make up the configuration
  --config-dir FOLDER  add the options in a folder of your own, laid out like
                       conf/
  --hydra-help         print Hydra's own options
  --debug              print the traceback of an error
  -h, --help           print this help
"""

STATUS = """\
Show the state and progress of the runs of a study, or how many runs of each study are in each state. A run is finished,
running, interrupted, failed, missing, or waiting for a sweep that is in progress.

  plainres status runs/digits --watch
  plainres status runs
"""

LIST = """\
List the groups of the configuration and their options, with a line about each. Choose an option with group=option.

  plainres list                   all groups, experiments included
  plainres list model/shortcut    one group
"""

DESCRIBE = """\
Show a network layer by layer: output shape, parameters and multiply-adds. For a study, show each of its networks.

  plainres describe data=cifar10 model.depth=110 model/shortcut=projection
"""

BENCH = """\
Measure how fast this machine trains a network, or each network of a study: images/s and ms/step of plainres, of a bare
PyTorch loop over the same network, batches and precision (the limit), and of DataLoader loops, from one as people often
write it to one with the settings of plainres. All take turns; each DataLoader loop has a process of its own. Also
report the parts of a step, the peak memory, which precision, number of threads and compilation is fastest here, and the
time that the run or the study would take. plainres train --dry-run uses the measured speeds later.

  plainres bench data=cifar10 optim=he2015 model.depth=20 trainer.threads=2
  plainres bench experiment=cifar10_degradation trainer=gpu precision=bf16-mixed
"""

REPORT = """\
Compare the finished runs of one or more studies: table, verdicts, figures and an HTML page. The report on one study is
written into its folder, as report/; that on several into A+B/report beside the first.

  plainres report runs/digits --open
  plainres report runs/digits runs/digits_wide
  plainres report runs/digits --format latex
"""

EVAL = """\
Evaluate a run, given by its folder, on its own test set or, with data=..., on another. Or evaluate a file of weights,
safetensors or of torch.save. A file of plainres export records its network; the overrides describe that of any other.

  plainres eval runs/default/identity-20-w16-s0-a1b2c3d4
  plainres eval exported.safetensors
  plainres eval resnet50.pth data=imagenet \\
    model=imagenet model.depth=50 model/block=bottleneck

Images are normalised by the channel statistics of the network's training, which a run and an exported file record.
Those of akamaster's files are known. For any other file they are data.mean and data.std, by default those of the data's
own training images.

Prints the loss, the error and the error of each class. Writes a Parquet file with one row for each image: target,
prediction, loss and logits. It goes into the folder of the run, or for a file of weights into the current folder.
"""
