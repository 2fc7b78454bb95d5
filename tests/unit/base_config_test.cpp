// The configuration: what is refused and with which words, what is accepted and where it lands, and
// that the table, the struct's defaults, the reference's defaults and docs/configuration.md say the
// same.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "core/config.h"
#include "core/config_table.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/utf8.h"

namespace picotron {
namespace {

// The sentence that parsing ends with, "" where it does not.
std::string refusal(const std::string& text, const std::vector<std::string>& flags = {}) {
  try {
    std::vector<std::string> arguments = flags;
    const std::vector<Override> overrides = take_overrides(arguments, Flags::dotted_and_short);
    parse_config(text, "c.json", overrides);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

std::string with(const std::string& section, const std::string& key, const std::string& value) {
  return "{\"" + section + "\": {\"" + key + "\": " + value + "}}";
}

struct Bad {
  std::string text;                // of the file
  std::vector<std::string> flags;  // of the command line
  std::vector<std::string> says;   // all of these are in the message
};

const Bad bad_ones[] = {
    // Malformed JSON: the place and what was expected there.
    {"", {}, {"c.json:1:1: expected a value, found the end of the file"}},
    {"{", {}, {"c.json:1:2: expected a key in double quotes or '}', found the end of the file"}},
    {"{\"training\": {\"seed\": 1},}",
     {},
     {"c.json:1:26", "key in double quotes after ','", "'}'"}},
    {"{\n  \"training\": {\n    \"seed\" 1\n  }\n}",
     {},
     {"c.json:3:12: expected ':' after \"seed\", found '1'"}},
    {"{\"training\": {\"seed\": 1 \"x\": 2}}",
     {},
     {"c.json:1:25: expected ',' or '}' after a value"}},
    {"{\"training\": {\"seed\": }}", {}, {"c.json:1:23: expected a value after ':'"}},
    {"{\"training\": {\"seed\": NaN}}", {}, {"expected a value after ':', found 'NaN'"}},
    {"{\"training\": {\"seed\": 01}}", {}, {"without leading zeros"}},
    {"{\"training\": {\"seed\": 1.}}", {}, {"expected a digit"}},
    {"{\"training\": {\"seed\": -}}", {}, {"expected a digit, found '}'"}},
    {"{'training': {}}", {}, {"c.json:1:2: expected a key in double quotes"}},
    {"{\"dataset\": {\"name\": \"x\n\"}}",
     {},
     {"c.json:1:22: the string that opens here needs a closing"}},
    {"{\"dataset\": {\"name\": \"\\q\"}}", {}, {"expected one of"}},
    {"{\"dataset\": {\"name\": \"\\ud800\"}}", {}, {"pair of \\u escapes"}},
    {"{} {}", {}, {"c.json:1:4: expected the end of the file"}},
    {"{ /* no end", {}, {"c.json:1:3: the comment that opens here needs a closing */"}},
    {std::string("{\0}", 3), {}, {"found the byte 0x00"}},
    {"{\"dataset\": {\"name\": \"caf\xe9\"}}",
     {},
     {"c.json:1:26: expected UTF-8, found the byte 0xe9"}},
    {"{\"dataset\": {\"name\": \"\xc0\xaf\"}}", {}, {"expected UTF-8, found the byte 0xc0"}},
    {"{}", {"--save_dir", "caf\xe9"}, {"--save_dir is not UTF-8"}},
    {std::string(100000, '['), {}, {"at most 64 nested levels"}},
    {"{\"training\": {\"seed\": 1,\n \"seed\": 2}}",
     {},
     {"c.json:2:2: \"seed\" was given on line 1 already"}},
    // What a message quotes commands no terminal and is cut between characters.
    {"{\"training\": {\"\\u001b[2J\\n\": 1}}", {}, {"unknown key training.\\u001b[2J\\u000a; "}},
    {"{\"\\u009b2J\": 1}", {}, {"unknown section \"\\u009b2J\""}},
    {with("training", "seed", "\"" + std::string(39, 'x') + "é\""), {}, {"x\"…; it must be"}},
    {with("training", std::string(50, 'x') + "é", "1"), {}, {"x…; "}},
    // The shape of the document.
    {"[]", {}, {"c.json: the configuration is an array; it must be an object"}},
    {"{\"training\": 3}", {}, {"c.json:1:2: \"training\" is 3; it must be an object"}},
    {"{\"trainig\": {}}",
     {},
     {"c.json:1:2: unknown section \"trainig\"; did you mean \"training\"?"}},
    {"{\"learning_rate\": 1}", {}, {"unknown section \"learning_rate\"", "training.learning_rate"}},
    {"{\"zzzzzzzz\": {}}", {}, {"unknown section", "distributed, model, training"}},
    // Unknown keys, in the section and across sections.
    {with("training", "learning_rat", "1"),
     {},
     {"training.learning_rat;", "did you mean training.learning_rate?"}},
    {with("model", "seq_length", "8"),
     {},
     {"c.json:1:12: unknown key model.seq_length", "training.seq_length?"}},
    {with("training", "mbs", "8"), {}, {"did you mean training.micro_batch_size?"}},
    {with("training", "qqqqqqqqq", "8"),
     {},
     {"unknown key training.qqqqqqqqq", "picotron config --explain"}},
    // Wrong types.
    {with("training", "seq_length", "\"128\""),
     {},
     {"c.json:1:29: training.seq_length is \"128\"", "a whole number from 1"}},
    {with("training", "seed", "null"),
     {},
     {"training.seed is null", "a whole number of at least 0"}},
    {with("training", "learning_rate", "true"),
     {},
     {"training.learning_rate is true", "a number from 0 to 1000"}},
    {with("dataset", "shuffle", "1"), {}, {"dataset.shuffle is 1", "true or false"}},
    {with("dataset", "shuffle", "\"true\""),
     {},
     {"dataset.shuffle is \"true\"; it must be true or false"}},
    {with("dataset", "name", "[1]"), {}, {"dataset.name is an array", "a string"}},
    {with("checkpoint", "save_dir", "\"\""), {}, {"checkpoint.save_dir is \"\"", "not empty"}},
    {with("distributed", "pp_engine", "\"1f2b\""),
     {},
     {"distributed.pp_engine is \"1f2b\"", "\"afab\", \"1f1b\", \"interleaved\" or \"zb-h1\""}},
    {with("model", "dtype", "\"float16\""),
     {},
     {"model.dtype is \"float16\"", "\"bfloat16\", or null"}},
    {with("distributed", "mesh_order", "\"dp-pp-cp\""),
     {},
     {"distributed.mesh_order", "\"dp-pp-cp-tp\""}},
    {with("distributed", "mesh_order", "\"dp-dp-cp-tp\""),
     {},
     {"distributed.mesh_order", "the four axes"}},
    {with("dataset", "name", "\"a\\u0000b\""), {}, {"dataset.name", "a string"}},
    {with("environment", "OMP_NUM_THREADS", "\"many\""),
     {},
     {"environment.OMP_NUM_THREADS is \"many\"", "a whole number from 1 to 4096"}},
    {with("environment", "FLASH_ATTEN", "\"yes\""),
     {},
     {"environment.FLASH_ATTEN is \"yes\"", "\"1\" or \"0\""}},
    {with("model", "rope_scaling", "{\"factor\": \"x\"}"),
     {},
     {"model.rope_scaling.factor is \"x\"", "a number above 0"}},
    {with("model", "rope_scaling", "{\"rope_type\": \"yarn\"}"),
     {},
     {"rope_type is \"yarn\"", "\"llama3\""}},
    {with("model", "rope_scaling", "{\"facto\": 1}"),
     {},
     {"unknown key model.rope_scaling.facto", "factor"}},
    {with("model", "rope_scaling", "{\"original_max_position_embeddings\": 1.5}"),
     {},
     {"is 1.5", "a whole number"}},
    {with("model", "rope_scaling", "8"), {}, {"model.rope_scaling is 8", "an object"}},
    // Numbers that are too large, too small, or no numbers.
    {with("training", "total_train_steps", "1.5"),
     {},
     {"training.total_train_steps is 1.5", "a whole number"}},
    {with("training", "total_train_steps", "-3"),
     {},
     {"training.total_train_steps is -3", "from 1"}},
    {with("training", "total_train_steps", "0"), {}, {"training.total_train_steps is 0", "from 1"}},
    {with("training", "seed", "9223372036854775808"),
     {},
     {"training.seed is 9223372036854775808", "at least 0"}},
    {with("training", "seed", "1e30"), {}, {"training.seed is 1e30", "a whole number"}},
    {with("training", "learning_rate", "1e400"),
     {},
     {"training.learning_rate is 1e400", "from 0 to 1000"}},
    {with("training", "learning_rate", "-1e-3"), {}, {"training.learning_rate is -1e-3", "from 0"}},
    {with("training", "adam_beta2", "1"), {}, {"training.adam_beta2 is 1", "from 0 to below 1"}},
    {with("training", "num_samples", "0"),
     {},
     {"training.num_samples is 0", "at least 1, or null"}},
    {with("dataset", "validation_fraction", "1.0"),
     {},
     {"dataset.validation_fraction is 1.0", "above 0 and below 1"}},
    {with("distributed", "dp_size", "0"), {}, {"distributed.dp_size is 0", "from 1 to 65536"}},
    {with("distributed", "zero_stage", "3"), {}, {"distributed.zero_stage is 3", "from 0 to 1"}},
    // The command line.
    {"{}",
     {"--training.seq_lenght", "8"},
     {"unknown key --training.seq_lenght", "training.seq_length?"}},
    {"{}", {"--training.seed"}, {"--training.seed needs a value: a whole number"}},
    {"{}", {"--training.seed", "--dp", "2"}, {"--training.seed needs a value"}},
    {"{}", {"--training.seed=x"}, {"--training.seed is \"x\"; it must be a whole number"}},
    {"{}", {"--training.seed", "-1"}, {"--training.seed is -1"}},
    {"{}",
     {"--training.learning_rate", "nan"},
     {"--training.learning_rate is \"nan\"", "a number"}},
    {"{}",
     {"--training.learning_rate", "inf"},
     {"--training.learning_rate is \"inf\"", "a number"}},
    {"{}", {"--training.seed", "null"}, {"--training.seed is \"null\"", "a whole number"}},
    {"{}", {"--dataset.shuffle=maybe"}, {"--dataset.shuffle is \"maybe\"", "true or false"}},
    {"{}", {"--pp_engine", "gpipe"}, {"--pp_engine is \"gpipe\"", "\"afab\""}},
    {"{}", {"--mbs", "0"}, {"--mbs is 0", "from 1"}},
    {"{}", {"--model.rope_scaling", "{\"factor\" 8}"}, {"--model.rope_scaling:1:", "expected ':'"}},
    // Sizes that do not divide, values that exclude each other: what would work is named.
    {"{}",
     {"--global_batch_size", "12", "--mbs", "4", "--dp", "2"},
     {"global_batch_size 12 is not a multiple of micro_batch_size 4 · dp_size 2 = 8", "8 or 16",
      "micro_batch_size 1, 2, 3 or 6"}},
    {"{}",
     {"--num_attention_heads", "6", "--num_key_value_heads", "4"},
     {"num_key_value_heads 4 does not divide num_attention_heads 6", "1, 2, 3 or 6"}},
    {"{}", {"--head_dim", "33"}, {"head_dim 33 is odd", "34"}},
    {"{}",
     {"--lr_schedule", "wsd", "--warmup_steps", "90", "--total_train_steps", "100",
      "--lr_decay_ratio", "0.5"},
     {"lr_decay_ratio 0.5 (50 steps)", "lr_decay_ratio 0.1 or less"}},
    {"{}", {"--use_cpu", "--backend", "nccl"}, {"\"nccl\" needs a GPU", "\"gloo\""}},
    {"{}",
     {"--distributed.use_cpu", "false", "--ranks", "threads"},
     {"\"threads\" is for the CPU", "\"processes\""}},
    {"{}",
     {"--distributed.use_cpu", "false", "--dtype", "float64"},
     {"\"float64\" is for the CPU", "\"float32\""}},
    {"{}",
     {"--seq_len", "16777216", "--mbs", "1048576", "--grad_acc_steps", "1048576"},
     {"tokens; lower micro_batch_size"}},
    {"{}",
     {"--pp_engine", "afab", "--pp_chunks", "2"},
     {"pp_chunks 2 is for pp_engine \"interleaved\" and pp_engine is \"afab\"", "use pp_chunks 1"}},
};

TEST(ConfigTest, BadInputGetsAClearSentence) {
  for (const Bad& bad : bad_ones) {
    const std::string message = refusal(bad.text, bad.flags);
    const std::string shown =
        bad.text.substr(0, 80) + " " + (bad.flags.empty() ? "" : bad.flags.front());
    EXPECT_FALSE(message.empty()) << "accepted: " << shown;
    for (const std::string& words : bad.says) {
      EXPECT_NE(message.find(words), std::string::npos)
          << shown << "\n  says: " << message << "\n  not:  " << words;
    }
    EXPECT_LE(std::count(message.begin(), message.end(), '\n'), 2) << message;
    EXPECT_LT(message.size(), 500u) << message;
    EXPECT_EQ(message.find('\x1b'), std::string::npos) << message;
    EXPECT_EQ(replace_invalid_utf8(message), message);
  }
}

TEST(ConfigTest, EveryReasonIsGivenAtOnce) {
  const std::string values =
      refusal(R"({"training": {"seed": -1, "seq_length": "x"}})", {"--dp", "0"});
  EXPECT_NE(values.find("training.seed"), std::string::npos);
  EXPECT_NE(values.find("training.seq_length"), std::string::npos);
  EXPECT_NE(values.find("--dp"), std::string::npos);
  const std::string checks = refusal("{}", {"--pp_chunks", "2", "--head_dim", "3"});
  EXPECT_NE(checks.find("c.json: pp_chunks 2"), std::string::npos);
  EXPECT_NE(checks.find("c.json: head_dim"), std::string::npos);
}

TEST(ConfigTest, FilesThatCannotBeRead) {
  const auto refused = [](const std::string& path) -> std::string {
    try {
      load_config(path);
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refused("no/such/config.json").find("no/such/config.json: cannot read"),
            std::string::npos);
  EXPECT_NE(refused(".").find(". is a folder"), std::string::npos);
  EXPECT_NE(refused("/dev/zero").find("larger than 1 MiB"), std::string::npos);
}

// Names that are looked for among all that came before them, and among the known ones.
TEST(ConfigTest, AMegabyteOfKeysIsRefusedInSeconds) {
  std::string section;
  for (int i = 0; section.size() < 1 << 20; ++i)
    section += fmt::format("{}\"{:x}\":0", i == 0 ? "" : ",", i);
#ifdef __SANITIZE_THREAD__
  constexpr std::chrono::seconds kMost{100};  // each access to memory is noted
#else
  constexpr std::chrono::seconds kMost{10};
#endif
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_NE(refusal("{\"training\":{" + section + "}}").find("more mistakes"), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kMost);
}

TEST(ConfigTest, CommentsAndSpellingsAreAccepted) {
  const Config config = parse_config(
      "\xef\xbb\xbf// a run\n{ /* all of it */ \"training\": {\"total_train_steps\": 1e3, // a "
      "thousand\n"
      "\"max_tokens\": 5.0, \"learning_rate\": 1}, \"dataset\": {\"name\": "
      "\"\\u00e9\\ud83d\\ude00\\t.txt\"}}",
      "c.json");
  EXPECT_EQ(config.training.total_train_steps, 1000);
  EXPECT_EQ(config.training.max_tokens, 5);
  EXPECT_EQ(config.training.learning_rate, 1);
  EXPECT_EQ(config.dataset.name, "é😀\t.txt");
  EXPECT_EQ(config.source, "c.json");
}

TEST(ConfigTest, NothingNamedIsLaidOverTheStories) {
  const Config stories = parse_config("{}", "c.json");
  EXPECT_EQ(stories.dataset.name, "builtin:stories");
  EXPECT_FALSE(stories.model.name.has_value());
  EXPECT_TRUE(stories.model.hidden_size.has_value());
  EXPECT_TRUE(warnings(stories).empty());
  Config tried_shortly = stories;
  tried_shortly.training.total_train_steps = stories.training.warmup_steps - 1;
  tried_shortly.checkpoint.save_frequency = 1;
  ASSERT_EQ(warnings(tried_shortly).size(), 1U);
  EXPECT_NE(warnings(tried_shortly)[0].find("exceeds total_train_steps"), std::string::npos);
  EXPECT_EQ(to_json(parse_config(stories_json(), "s")), to_json(stories));

  // A key that adjusts keeps them; a section, or another model or data set, does not.
  const std::vector<Override> adjusts = {{.key = "model.num_hidden_layers", .value = "2"}};
  EXPECT_EQ(parse_config("{}", "c", adjusts).model.num_hidden_layers, 2);
  EXPECT_TRUE(parse_config("{}", "c", adjusts).model.hidden_size.has_value());
  for (const char* key : {"model.name", "model.init_from", "dataset.name"}) {
    const std::vector<Override> names = {{.key = key, .value = "x"}};
    EXPECT_FALSE(parse_config("{}", "c", names).model.hidden_size.has_value()) << key;
  }
  EXPECT_EQ(to_json(parse_config(R"({"model": {}})", "c")), to_json(Config{}));
  EXPECT_EQ(to_json(parse_config(R"({"dataset": {}})", "c")), to_json(Config{}));
}

TEST(ConfigTest, WeightsToStartFromImplyTheirArchitecture) {
  EXPECT_FALSE(parse_config(R"({"model": {"init_from": "folder"}})", "c").model.name.has_value());
  EXPECT_EQ(parse_config(R"({"model": {"init_from": "folder", "name": "n"}})", "c").model.name,
            "n");
}

TEST(ConfigTest, DefaultsAreTheReferences) {
  const std::map<std::string, std::string> reference = {
      {"distributed.tp_size", "1"},
      {"distributed.cp_size", "1"},
      {"distributed.pp_size", "1"},
      {"distributed.dp_size", "1"},
      {"distributed.pp_engine", "\"1f1b\""},
      {"distributed.backend", "null"},  // as the machine has it
      {"distributed.use_cpu", "null"},  // as the machine has it
      {"model.name", "\"HuggingFaceTB/SmolLM-360M-Instruct\""},
      {"model.num_hidden_layers", "null"},    // the named model's
      {"model.num_attention_heads", "null"},  // the named model's
      {"model.num_key_value_heads", "null"},  // the named model's
      {"model.dtype", "null"},                // as the machine has it
      {"model.use_flash_attention", "true"},
      {"model.use_fused_adam", "true"},
      {"training.seed", "42"},
      {"training.learning_rate", "0.0003"},
      {"training.total_train_steps", "200"},
      {"training.seq_length", "1024"},
      {"training.micro_batch_size", "32"},
      {"training.gradient_accumulation_steps", "1"},
      {"training.num_samples", "400000"},
      {"training.max_tokens", "null"},
      {"dataset.name", "\"builtin:stories\""},  // needs no download
      {"dataset.subset_name", "null"},
      {"dataset.split", "\"train\""},
      {"dataset.num_workers", "0"},
      {"dataset.num_proc", "1"},
      {"checkpoint.save_dir", "\"ckpt\""},
      {"checkpoint.save_frequency", "300"},
      {"checkpoint.load_path", "\"\""},
      {"logging.use_wandb", "false"},
      {"logging.project_name", "\"picotron\""},
      {"logging.run_name", "null"},
      {"environment.OMP_NUM_THREADS", "null"},  // cores / ranks
      {"environment.TOKENIZERS_PARALLELISM", "\"false\""},
      {"environment.FLASH_ATTEN", "\"1\""},
      {"environment.HF_TOKEN", "null"},
  };
  std::set<std::string> seen;
  for (const FieldInfo& field : all_fields()) {
    const std::string name = field.section + "." + field.key;
    EXPECT_EQ(field.in_reference, reference.contains(name)) << name;
    if (field.in_reference) {
      EXPECT_EQ(field.default_text, reference.at(name)) << name;
    }
    EXPECT_TRUE(seen.insert(name).second) << name << " is in the table twice";
    EXPECT_TRUE(field.flag.empty() || seen.insert(field.flag).second) << field.flag;
    EXPECT_TRUE(field.description.ends_with('.')) << name;
  }
  EXPECT_EQ(Config{}.training.weight_decay, 0.01);  // PyTorch's AdamW
  EXPECT_EQ(Config{}.training.grad_clip, 0);
}

// Another value than the default, of the field's type, neither refused nor at odds with the others.
std::string another_value(const FieldInfo& field) {
  static const std::map<std::string, std::string> special = {
      {"mesh_order", "\"pp-dp-cp-tp\""},
      {"zero_stage", "0"},
      {"cp_size", "2"},
      {"resume", "\"auto\""},
      {"rope_scaling",
       "{\"rope_type\": \"llama3\", \"factor\": 16.5, \"low_freq_factor\": 2, "
       "\"high_freq_factor\": 3, "
       "\"original_max_position_embeddings\": 100}"},
      {"OMP_NUM_THREADS", "\"3\""},
      {"TOKENIZERS_PARALLELISM", "\"true\""},
      {"FLASH_ATTEN", "\"0\""},
      {"rms_norm_eps", "1e-07"},
      {"rope_theta", "1.5"},
      {"global_batch_size", "64"}};
  if (const auto found = special.find(field.key); found != special.end()) return found->second;
  if (field.type == "whole number") return "6";
  if (field.type == "number") return "0.375";
  if (field.type == "true or false") return field.default_text == "true" ? "false" : "true";
  if (field.type == "string") return "\"a \\\"b\\\" c\"";
  // A choice: the type lists the names, of which one is not the default.
  const std::string first = field.type.substr(0, field.type.find('"', 1) + 1);
  return first != field.default_text
             ? first
             : field.type.substr(field.type.rfind('"', field.type.size() - 2));
}

TEST(ConfigTest, EveryKeyArrivesFromFileAndCommandLine) {
  for (const FieldInfo& field : all_fields()) {
    const std::string name = field.section + "." + field.key;
    const config_table::Field& entry = *config_table::find(name);
    if (field.key == "HF_TOKEN") continue;  // its value is never printed: the next test
    const std::string value = another_value(field);
    ASSERT_NE(value, field.default_text) << name;

    // By JSON, straight into the struct, for a value may ask for what is not built yet.
    Config from_json;
    ASSERT_TRUE(config_table::set(entry, from_json, json_text::parse(value, "v"))) << name;
    EXPECT_EQ(config_table::value_text(entry, from_json), value) << name;

    // By command line: strings lose their quotes there.
    Config from_flag;
    const json_text::Value parsed = json_text::parse(value, "v");
    const std::string word = parsed.kind == json_text::Value::Kind::string ? parsed.text : value;
    ASSERT_TRUE(config_table::set(entry, from_flag, config_table::from_text(entry, word, "--x")))
        << name;
    EXPECT_EQ(to_json(from_flag), to_json(from_json)) << name;

    // It changed this key alone.
    for (const FieldInfo& other : all_fields()) {
      const config_table::Field& another = *config_table::find(other.section + "." + other.key);
      EXPECT_EQ(config_table::is_default(another, from_json), &another != &entry)
          << name << " " << other.key;
    }

    // By the front doors where it is built: a file, a dotted flag, a short flag; and back from what
    // is printed.
    if (!field.built) continue;
    // Chunks are refused without their engine.
    const std::string beside = field.key == "pp_chunks" ? "\"pp_engine\": \"interleaved\"" : "";
    const std::string base = "{\"model\": {}, \"distributed\": {" + beside + "}}";
    const std::string text =
        field.section == "model" ? "{\"model\": {\"" + field.key + "\": " + value + "}}"
        : field.section == "dataset"
            ? "{\"dataset\": {\"" + field.key + "\": " + value + "}}"
            : "{\"model\": {}, \"" + field.section + "\": {\"" + field.key + "\": " + value +
                  (beside.empty() ? "" : ", " + beside) + "}}";
    Config expected = parse_config(text, "c");
    EXPECT_EQ(config_table::value_text(entry, expected), value) << name;
    EXPECT_EQ(to_json(parse_config(to_json(expected), "again")), to_json(expected)) << name;
    for (const std::string& flag : {name, field.flag}) {
      if (flag.empty()) continue;
      std::vector<std::string> arguments = {"before", "--" + flag + "=" + word, "after"};
      const std::vector<Override> overrides = take_overrides(arguments, Flags::dotted_and_short);
      EXPECT_EQ(arguments, (std::vector<std::string>{"before", "after"}));
      EXPECT_EQ(config_table::value_text(entry, parse_config(base, "c", overrides)), value) << flag;
    }
  }
}

TEST(ConfigTest, ATokenIsReadAndNeverPrinted) {
  const Config config = parse_config(with("environment", "HF_TOKEN", "\"hf_secret\""), "c.json");
  EXPECT_EQ(config.environment.HF_TOKEN, "hf_secret");
  EXPECT_EQ(to_json(config).find("hf_secret"), std::string::npos);
  EXPECT_EQ(refusal(with("environment", "HF_TOKEN", "[\"hf_secret\"]")).find("hf_secret"),
            std::string::npos);
}

TEST(ConfigTest, OverridesAreTakenOutOfTheArguments) {
  std::vector<std::string> arguments = {"--config",
                                        "c.json",
                                        "--training.seed=7",
                                        "--dataset.shuffle",
                                        "--use_cpu",
                                        "--steps",
                                        "--dp",
                                        "2",
                                        "--training.max_tokens",
                                        "null",
                                        "--model.mlp_bias",
                                        "false",
                                        "rest"};
  const std::vector<Override> taken = take_overrides(arguments, Flags::dotted_and_short);
  EXPECT_EQ(arguments, (std::vector<std::string>{"--config", "c.json", "--steps", "rest"}));
  const Config config =
      parse_config(R"({"dataset": {"name": "x"}, "training": {"max_tokens": 9}})", "c", taken);
  EXPECT_EQ(config.training.seed, 7);
  EXPECT_TRUE(config.dataset.shuffle);
  EXPECT_EQ(config.distributed.use_cpu, true);
  EXPECT_EQ(config.distributed.backend, Backend::gloo);  // --use_cpu takes gloo with it
  EXPECT_EQ(config.distributed.dp_size, 2);
  EXPECT_FALSE(config.training.max_tokens.has_value());
  EXPECT_EQ(config.model.mlp_bias, false);

  std::vector<std::string> untouched = {"--dp", "2"};
  EXPECT_TRUE(take_overrides(untouched, Flags::dotted).empty());
  EXPECT_EQ(untouched.size(), 2u);
}

TEST(ConfigTest, FlagsAloneAreCreateConfigs) {
  std::vector<std::string> example = {"--dp",
                                      "2",
                                      "--model_name",
                                      "HuggingFaceTB/SmolLM-1.7B",
                                      "--num_hidden_layers",
                                      "5",
                                      "--grad_acc_steps",
                                      "2",
                                      "--seq_len",
                                      "128",
                                      "--use_cpu"};
  const Config config = config_from_flags(take_overrides(example, Flags::dotted_and_short));
  EXPECT_EQ(config.model.name, "HuggingFaceTB/SmolLM-1.7B");
  EXPECT_EQ(config.model.num_hidden_layers, 5);
  EXPECT_FALSE(config.model.hidden_size.has_value());
  EXPECT_EQ(config.training.micro_batch_size, 1);  // create_config's default, not the schema's
  EXPECT_EQ(config.training.gradient_accumulation_steps, 2);
  EXPECT_EQ(config.training.learning_rate, 3e-4);
  EXPECT_TRUE(config_from_flags({}).model.hidden_size.has_value());  // the stories
}

TEST(ConfigTest, TheBatch) {
  Config config;
  config.training.micro_batch_size = 4;
  config.training.gradient_accumulation_steps = 3;
  config.training.seq_length = 10;
  config.distributed.dp_size = 2;
  EXPECT_EQ(global_batch_size(config), 24);
  EXPECT_EQ(tokens_per_step(config), 240);
  config.training.global_batch_size = 40;
  EXPECT_NO_THROW(check(config));
  EXPECT_EQ(gradient_accumulation_steps(config), 5);
  EXPECT_EQ(global_batch_size(config), 40);
  config.training.global_batch_size = 42;
  EXPECT_THROW(check(config), UserError);
}

TEST(ConfigTest, TheWorld) {
  Config config;
  config.source = "c.json";
  config.distributed.dp_size = 3;
  config.distributed.tp_size = 2;
  EXPECT_EQ(world_size(config), 6);
  EXPECT_NO_THROW(check_world_size(config, 6));
  try {
    check_world_size(config, 4);
    FAIL();
  } catch (const UserError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("c.json: 4 ranks were started"), std::string::npos) << message;
    EXPECT_NE(message.find("start 6, or set distributed.dp_size to 2"), std::string::npos)
        << message;
  }
  const auto refused = [](int64_t tp, int64_t heads, int64_t kv_heads) {
    Config sized;
    sized.distributed.tp_size = tp;
    try {
      check_layout(sized, {.num_attention_heads = heads,
                           .num_key_value_heads = kv_heads,
                           .intermediate_size = 1024,
                           .vocab_size = 1024});
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  Config staged;
  staged.distributed.pp_size = 3;
  staged.distributed.pp_chunks = 2;
  EXPECT_NO_THROW(check_layout(staged, {.num_hidden_layers = 6}));
  for (const auto& [layers, remedy] :
       {std::pair(5, "use pp_size 2 or less, or pp_chunks 1"), std::pair(2, "use pp_size 1")}) {
    try {
      check_layout(staged, {.num_hidden_layers = layers});
      FAIL();
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find(remedy), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(refused(3, 32, 8),
            "tp_size 3 does not divide num_attention_heads 32; use 1, 2, 4, 8, 16 or 32");
  EXPECT_EQ(
      refused(2, 12, 3),
      "tp_size 2 does not divide and is no multiple of num_key_value_heads 3; use 1, 3, 6 or 12");
  EXPECT_EQ(refused(16, 32, 8), "");
}

TEST(ConfigTest, WhatIsNotBuiltAndChangesNothingIsAWarning) {
  std::vector<std::string> arguments = {
      "--use_wandb", "--num_workers", "4", "--total_train_steps", "200", "--save_frequency", "300"};
  const std::vector<std::string> sentences =
      warnings(config_from_flags(take_overrides(arguments, Flags::dotted_and_short)));
  ASSERT_EQ(sentences.size(), 3u);
  EXPECT_EQ(sentences[0],
            "dataset.num_workers 4 has no effect: batches are prepared by the rank itself");
  EXPECT_EQ(sentences[1], "logging.use_wandb true has no effect: the metrics are in metrics.jsonl");
  EXPECT_EQ(sentences[2],
            "no checkpoint will be written at the end, for checkpoint.save_frequency 300 exceeds "
            "total_train_steps 200");
}

TEST(ConfigTest, TheProcessEnvironmentWins) {
  Config config = parse_config(with("environment", "OMP_NUM_THREADS", "\"2\""), "c");
  EXPECT_EQ(config.environment.OMP_NUM_THREADS, 2);
  const std::map<std::string, std::string> variables = {
      {"OMP_NUM_THREADS", "8"}, {"FLASH_ATTEN", "0"}, {"HF_TOKEN", ""}};
  const auto get = [&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
  resolve_environment(config, get);
  EXPECT_EQ(config.environment.OMP_NUM_THREADS, 8);
  EXPECT_FALSE(config.environment.FLASH_ATTEN);
  EXPECT_FALSE(config.model.use_flash_attention);
  EXPECT_FALSE(config.environment.HF_TOKEN.has_value());
  try {
    resolve_environment(config, [](const char*) { return "x"; });
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(std::string(error.what()),
              "OMP_NUM_THREADS in the process environment is \"x\"; it must be a whole number from "
              "1 to 4096, or null");
  }
}

TEST(ConfigTest, KeysAreExplained) {
  EXPECT_NE(explain("training.learning_rate").find("training.learning_rate = 0.0003"),
            std::string::npos);
  EXPECT_NE(explain("learning_rate").find("training.learning_rate"), std::string::npos);
  EXPECT_NE(explain("kernels").find("kernels.fused"), std::string::npos);
  for (const FieldInfo& field : all_fields()) {
    EXPECT_NE(explain("").find(field.section + "." + field.key), std::string::npos);
  }
  try {
    explain("training.learning_rte");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean training.learning_rate?"),
              std::string::npos);
  }
}

TEST(ConfigTest, TheShippedConfigsAreGood) {
  for (const auto& entry : std::filesystem::directory_iterator("configs")) {
    if (entry.path().extension() != ".json") continue;
    const Config config = load_config(entry.path().string());
    EXPECT_TRUE(warnings(config).empty()) << entry.path();
  }
}

TEST(ConfigTest, ThePageInDocsIsTheTable) {
  std::ifstream file("docs/configuration.md", std::ios::binary);
  ASSERT_TRUE(file)
      << "docs/configuration.md is missing; run picotron config --markdown > docs/configuration.md";
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_TRUE(page.str() == config_markdown())
      << "run picotron config --markdown > docs/configuration.md";
}

}  // namespace
}  // namespace picotron
