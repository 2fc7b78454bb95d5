// The numbers of published models, the two spellings of a config.json, and what is refused.
#include "model/architectures.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "core/error.h"
#include "model/huggingface_config.h"
#include "model/known_architectures.h"

namespace picotron {
namespace {

using nlohmann::json;

json small_config() {
  return {{"model_type", "llama"},      {"vocab_size", 512},      {"hidden_size", 64},
          {"intermediate_size", 160},   {"num_hidden_layers", 3}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2},   {"rms_norm_eps", 1e-5},   {"rope_theta", 10000.0},
          {"tie_word_embeddings", true}};
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "(no UserError)";
}

ModelKeys no_keys() {
  ModelKeys keys;
  keys.name.reset();
  return keys;
}

// Published parameter counts: a wrong number in the table cannot hide here.
TEST(Architectures, CountsOfPublishedModels) {
  const std::vector<std::pair<const char*, int64_t>> published = {
      {"HuggingFaceTB/SmolLM-135M", 134'515'008},
      {"HuggingFaceTB/SmolLM-360M-Instruct", 361'821'120},
      {"HuggingFaceTB/SmolLM-1.7B", 1'711'376'384},
      {"HuggingFaceTB/SmolLM2-135M", 134'515'008},
      {"HuggingFaceTB/SmolLM2-360M", 361'821'120},
      {"HuggingFaceTB/SmolLM2-1.7B-Instruct", 1'711'376'384},
      {"TinyLlama/TinyLlama_v1.1", 1'100'048'384},
      {"meta-llama/Llama-2-7b-hf", 6'738'415'616},
      {"meta-llama/Meta-Llama-3-8B", 8'030'261'248},
      {"meta-llama/Llama-3.2-1B", 1'235'814'400},
      {"meta-llama/Llama-3.2-3B", 3'212'749'824},
  };
  for (const auto& [name, count] : published) {
    const LlamaConfig* known = find_architecture(name);
    ASSERT_NE(known, nullptr) << name;
    EXPECT_EQ(count_parameters(*known), count) << name;
  }
  for (const std::string& name : known_architectures()) {
    EXPECT_NO_THROW(check_architecture(*find_architecture(name), name));
  }
  EXPECT_EQ(find_architecture("huggingfacetb/SmolLM-135M"), nullptr);
  const LlamaConfig& smollm2 = *find_architecture("HuggingFaceTB/SmolLM2-360M");
  EXPECT_EQ(smollm2.rope_theta, 100000.0);
  EXPECT_EQ(smollm2.max_position_embeddings, 8192);
  EXPECT_EQ(smollm2.initializer_range, 0.02);
  EXPECT_EQ(find_architecture("HuggingFaceTB/SmolLM2-135M")->initializer_range, 1.0 / 24);
  EXPECT_EQ(find_architecture("HuggingFaceTB/SmolLM2-1.7B")->rope_theta, 130000.0);
  EXPECT_EQ(find_architecture("meta-llama/Llama-3.2-1B")->rope_scaling->factor, 32.0);
}

TEST(Architectures, BiasesAndUntiedHeadAreCounted) {
  LlamaConfig config = from_huggingface(small_config(), "c.json");
  const int64_t tied = count_parameters(config);
  config.tie_word_embeddings = false;
  EXPECT_EQ(count_parameters(config), tied + 512 * 64);
  config.attention_bias = true;  // q 64, k 32, v 32, o 64
  EXPECT_EQ(count_parameters(config), tied + 512 * 64 + 3 * 192);
  config.mlp_bias = true;  // gate 160, up 160, down 64
  EXPECT_EQ(count_parameters(config), tied + 512 * 64 + 3 * 192 + 3 * 384);
}

TEST(Architectures, FlopsPerToken) {
  const LlamaConfig config = from_huggingface(small_config(), "c.json");
  // Per layer: q and o 64x64, k and v 32x64, three of 160x64; norms 2x64.
  const double products = 3.0 * (2 * 4096 + 2 * 2048 + 3 * 10240);
  const double stored = products + 3 * 128 + 64 + 512 * 64;
  EXPECT_EQ(reference_flops_per_token(config, 128), 6 * stored + 12.0 * 3 * 64 * 128);
  EXPECT_EQ(hardware_flops_per_token(config, 128), 6 * (products + 512 * 64) + 6.0 * 3 * 64 * 128);
  // A head counts once in hardware FLOPs, tied or not; its second copy is stored, not multiplied.
  LlamaConfig untied = config;
  untied.tie_word_embeddings = false;
  EXPECT_EQ(hardware_flops_per_token(untied, 128), hardware_flops_per_token(config, 128));
  EXPECT_GT(reference_flops_per_token(untied, 128), reference_flops_per_token(config, 128));
}

TEST(HuggingFaceConfig, BothSpellingsOfRope) {
  json four = small_config();
  four["rope_theta"] = 500000.0;
  four["rope_scaling"] = {{"rope_type", "llama3"},
                          {"factor", 8.0},
                          {"low_freq_factor", 1.0},
                          {"high_freq_factor", 4.0},
                          {"original_max_position_embeddings", 8192}};
  json five = small_config();
  five.erase("rope_theta");
  five["rope_parameters"] = four["rope_scaling"];
  five["rope_parameters"]["rope_theta"] = 500000.0;
  for (const json& contents : {four, five}) {
    const LlamaConfig config = from_huggingface(contents, "config.json");
    EXPECT_EQ(config.rope_theta, 500000.0);
    ASSERT_TRUE(config.rope_scaling);
    EXPECT_EQ(config.rope_scaling->factor, 8.0);
    EXPECT_EQ(config.rope_scaling->original_max_position_embeddings, 8192);
  }
  five["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 77.0}};
  EXPECT_EQ(from_huggingface(five, "config.json").rope_theta, 77.0);
  EXPECT_FALSE(from_huggingface(five, "config.json").rope_scaling);
  // The older key for the type, of transformers before 4.43.
  four["rope_scaling"]["type"] = four["rope_scaling"]["rope_type"];
  four["rope_scaling"].erase("rope_type");
  EXPECT_TRUE(from_huggingface(four, "config.json").rope_scaling);
}

TEST(HuggingFaceConfig, WhatIsAbsentIsAsInTransformers) {
  json contents = small_config();
  for (const char* key :
       {"num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"}) {
    contents.erase(key);
  }
  const LlamaConfig config = from_huggingface(contents, "config.json");
  EXPECT_EQ(config.num_key_value_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_id, 2);
  contents["bos_token_id"] = nullptr;
  contents["eos_token_id"] = {128, 129};
  contents["head_dim"] = 24;
  const LlamaConfig given = from_huggingface(contents, "config.json");
  EXPECT_FALSE(given.bos_token_id);
  EXPECT_EQ(given.eos_token_id, 128);
  EXPECT_EQ(given.head_dim, 24);
}

TEST(HuggingFaceConfig, WrittenAndReadAgainIsTheSame) {
  for (const std::string& name : known_architectures()) {
    const LlamaConfig& config = *find_architecture(name);
    const json written = to_huggingface(config, DType::bfloat16);
    const LlamaConfig again = from_huggingface(json::parse(written.dump()), "config.json");
    EXPECT_EQ(to_huggingface(again, DType::bfloat16), written) << name;
    EXPECT_EQ(count_parameters(again), count_parameters(config)) << name;
  }
}

struct BadConfig {
  const char* key;
  json value;
  const char* says;  // in the message, beside the file's name
};

TEST(HuggingFaceConfig, BadOnesAreRefusedByName) {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 4.0},
                       {"high_freq_factor", 1.0},
                       {"original_max_position_embeddings", 8192}};
  const std::vector<BadConfig> cases = {
      {"model_type", "gpt2", "\"gpt2\""},
      {"model_type", nullptr, "model_type"},
      {"model_type", 3, "model_type"},
      {"hidden_act", "gelu", "\"gelu\""},
      {"attention_dropout", 0.1, "attention_dropout"},
      {"vocab_size", -1, "vocab_size -1"},
      {"vocab_size", 0, "vocab_size 0"},
      {"vocab_size", 32000.5, "vocab_size"},
      {"vocab_size", "32000", "vocab_size"},
      {"vocab_size", uint64_t{1} << 63, "too large"},
      {"hidden_size", int64_t{1} << 62, "hidden_size"},
      {"hidden_size", 66, "does not divide hidden_size 66"},
      {"hidden_size", 60, "head_dim 15 is odd"},
      {"hidden_size", nullptr, "\"hidden_size\" is missing"},
      {"intermediate_size", -160, "intermediate_size -160"},
      {"num_hidden_layers", 0, "num_hidden_layers 0"},
      {"num_hidden_layers", 1'000'000'000, "num_hidden_layers"},
      {"num_attention_heads", 0, "num_attention_heads 0"},
      {"num_key_value_heads", 3, "does not divide num_attention_heads 4; use 1, 2, 4"},
      {"num_key_value_heads", -2, "num_key_value_heads -2"},
      {"head_dim", 15, "head_dim 15 is odd"},
      {"head_dim", 0, "head_dim 0"},
      {"max_position_embeddings", -5, "max_position_embeddings -5"},
      {"rms_norm_eps", 0.0, "rms_norm_eps"},
      {"rms_norm_eps", -1e-6, "rms_norm_eps"},
      {"rope_theta", 0.0, "rope_theta"},
      {"rope_theta", "big", "rope_theta"},
      {"initializer_range", -1.0, "initializer_range"},
      {"tie_word_embeddings", 1, "tie_word_embeddings"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, "\"linear\""},
      {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}, "\"yarn\""},
      {"rope_scaling", {{"rope_type", "llama3"}}, "\"factor\" is missing"},
      {"rope_scaling", llama3, "in order"},
      {"rope_scaling", 2, "rope_scaling"},
      {"rope_parameters", {{"rope_type", "dynamic"}, {"factor", 2.0}}, "\"dynamic\""},
      {"rope_parameters", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
  };
  for (const BadConfig& bad : cases) {
    json contents = small_config();
    contents[bad.key] = bad.value;
    const std::string message = message_of([&] { from_huggingface(contents, "here/config.json"); });
    EXPECT_NE(message.find(bad.says), std::string::npos) << bad.key << ": " << message;
    EXPECT_NE(message.find("here/config.json"), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  EXPECT_NE(message_of([] { from_huggingface(json::array(), "c.json"); }).find("c.json"),
            std::string::npos);
}

class InFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "archXXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const char* name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  std::filesystem::path folder_;
};

TEST_F(InFolder, ConfigFiles) {
  const std::string folder = folder_.string();
  EXPECT_NE(message_of([&] { read_huggingface_config(folder); }).find("no config.json"),
            std::string::npos);
  EXPECT_NE(message_of([&] { read_huggingface_config(folder + "/none.json"); }).find("none.json"),
            std::string::npos);
  write("config.json", "{\n  \"model_type\": \"llama\",\n  oops\n}");
  EXPECT_NE(message_of([&] { read_huggingface_config(folder); }).find("config.json:3:"),
            std::string::npos);
  write("config.json", std::string(1'000'000, '['));
  EXPECT_NE(message_of([&] { read_huggingface_config(folder); }).find("config.json"),
            std::string::npos);
  write("config.json", "{\"vocab_size\": 1e999}");
  EXPECT_NE(message_of([&] { read_huggingface_config(folder); }).find("config.json"),
            std::string::npos);
  write("config.json", small_config().dump());
  EXPECT_EQ(read_huggingface_config(folder).hidden_size, 64);
  EXPECT_EQ(read_huggingface_config(folder + "/config.json").hidden_size, 64);
}

TEST_F(InFolder, FolderTableAndInitFrom) {
  write("config.json", small_config().dump());
  ModelKeys keys;
  keys.name = folder_.string();
  EXPECT_EQ(resolve_architecture(keys, 99).vocab_size, 512) << "a named model keeps its vocabulary";
  keys.name.reset();
  keys.init_from = folder_.string();
  EXPECT_EQ(resolve_architecture(keys, 99).vocab_size, 512) << "init_from implies its architecture";
  keys.name = "HuggingFaceTB/SmolLM-135M";
  EXPECT_EQ(resolve_architecture(keys, {}).vocab_size, 49152) << "the name wins over init_from";
}

TEST(ResolveArchitecture, OverridesAndWhatFollowsThem) {
  ModelKeys keys;
  keys.name = "HuggingFaceTB/SmolLM-360M-Instruct";
  keys.num_hidden_layers = 2;
  keys.num_attention_heads = 10;
  const LlamaConfig narrower = resolve_architecture(keys, {});
  EXPECT_EQ(narrower.num_hidden_layers, 2);
  EXPECT_EQ(narrower.head_dim, 96) << "960 / 10";
  EXPECT_EQ(narrower.num_key_value_heads, 5);
  keys.num_attention_heads = 16;
  EXPECT_NE(message_of([&] {
              resolve_architecture(keys, {});
            }).find("num_key_value_heads 5 does not divide num_attention_heads 16"),
            std::string::npos);
  keys.name = "HuggingFaceTB/SmolLM-1.7B-Instruct";
  keys.num_attention_heads = 16;
  EXPECT_EQ(resolve_architecture(keys, {}).num_key_value_heads, 16) << "all heads stay all heads";
  keys.head_dim = 64;
  keys.tie_word_embeddings = false;
  keys.vocab_size = 1;
  keys.rope_scaling = RopeScalingKeys{.factor = 4};
  const LlamaConfig other = resolve_architecture(keys, {});
  EXPECT_EQ(other.head_dim, 64);
  EXPECT_FALSE(other.tie_word_embeddings);
  EXPECT_FALSE(other.eos_token_id) << "outside a vocabulary of 1";
  EXPECT_EQ(other.rope_scaling->factor, 4);
  keys.rope_scaling->rope_type = "default";
  EXPECT_FALSE(resolve_architecture(keys, {}).rope_scaling);
}

TEST(ResolveArchitecture, WithoutANameTheKeysSayItAll) {
  ModelKeys keys = no_keys();
  EXPECT_NE(message_of([&] { resolve_architecture(keys, 500); }).find("model.hidden_size"),
            std::string::npos);
  keys.hidden_size = 96;
  keys.num_hidden_layers = 2;
  keys.num_attention_heads = 6;
  EXPECT_NE(message_of([&] { resolve_architecture(keys, {}); }).find("model.vocab_size"),
            std::string::npos);
  const LlamaConfig config = resolve_architecture(keys, 500);
  EXPECT_EQ(config.vocab_size, 500);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.num_key_value_heads, 6);
  EXPECT_EQ(config.intermediate_size, 256);
  keys.vocab_size = 300;
  EXPECT_EQ(resolve_architecture(keys, 500).vocab_size, 300);
  keys.num_attention_heads = 0;
  EXPECT_NE(message_of([&] { resolve_architecture(keys, 500); }).find("num_attention_heads 0"),
            std::string::npos);
  keys.num_attention_heads = 5;
  EXPECT_NE(message_of([&] { resolve_architecture(keys, 500); }).find("95 or 100"),
            std::string::npos);
}

TEST(ResolveArchitecture, UnknownNamesAreAnsweredWithTheNearest) {
  ModelKeys keys;
  keys.name = "HuggingFaceTB/SmolLM-360M-instruct";
  EXPECT_NE(message_of([&] {
              resolve_architecture(keys, {});
            }).find("did you mean HuggingFaceTB/SmolLM-360M-Instruct?"),
            std::string::npos);
  keys.name = "SmolLM-135M";
  EXPECT_NE(message_of([&] {
              resolve_architecture(keys, {});
            }).find("did you mean HuggingFaceTB/SmolLM-135M?"),
            std::string::npos);
  keys.name = "mistralai/Mistral-7B-v0.1";
  const std::string hub = message_of([&] { resolve_architecture(keys, {}); });
  EXPECT_NE(hub.find("is neither a folder nor in the built-in table"), std::string::npos) << hub;
  keys = no_keys();
  keys.init_from = "./nowhere";
  const std::string folder = message_of([&] { resolve_architecture(keys, {}); });
  EXPECT_NE(folder.find("model.init_from ./nowhere"), std::string::npos) << folder;
}

}  // namespace
}  // namespace picotron
