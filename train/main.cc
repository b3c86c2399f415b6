// The program's composition root: the only place that names concrete backends.
#include "train/cli/cli.h"

int main(int argc, char** argv) { return gantrain::run_cli(argc, argv, gantrain::VerbTable{}); }
