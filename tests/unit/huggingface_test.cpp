// Model folders: what goes out comes in, cut and converted; what does not fit is named.
#include "checkpoint/huggingface.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>

#include "checkpoint/safetensors.h"
#include "core/error.h"
#include "model/huggingface_config.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;

LlamaConfig small_config(bool tied) {
  LlamaConfig config;
  config.name = "small";
  config.vocab_size = 51;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 6;
  config.tie_word_embeddings = tied;
  config.attention_bias = true;
  return config;
}

// The parameters of rank `rank` of `size`, each cut along `dim` where it has that dim.
Parameters make_parameters(const LlamaConfig& config, at::ScalarType type, int64_t dim = 0,
                           int64_t rank = 0, int64_t size = 1) {
  Parameters parameters;
  for (const auto& [name, shape] : huggingface_tensors(config)) {
    Parameter parameter;
    parameter.name = name;
    parameter.full_shape = shape;
    const int64_t along = dim < static_cast<int64_t>(shape.size()) ? dim : 0;
    const int64_t length = shape[static_cast<size_t>(along)];
    parameter.shard = {along, rank * length / size, (rank + 1) * length / size};
    parameters.declare({parameter});
  }
  parameters.allocate(type);
  return parameters;
}

class HuggingFace : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "huggingfaceXXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // A saved model of random weights, whose parameters are returned.
  Parameters saved(const fs::path& folder, const LlamaConfig& config,
                   at::ScalarType type = at::kFloat, const SaveOptions& options = {}) {
    Parameters parameters = make_parameters(config, type);
    parameters.flat().normal_();
    save_huggingface(folder, config, parameters, options);
    return parameters;
  }
  std::string message_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const UserError& error) {
      return error.what();
    }
    return "(no UserError)";
  }
  void write(const fs::path& file, const std::string& text) {
    std::ofstream(file, std::ios::binary) << text;
  }
  size_t entries(const fs::path& folder) {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder), {}));
  }
  fs::path folder_;
};

void expect_same(const Parameters& actual, const Parameters& expected) {
  for (size_t i = 0; i < expected.list().size(); ++i) {
    const Parameter& a = actual.list()[i];
    EXPECT_TRUE(at::equal(a.value, expected.list()[i].value.to(a.value.scalar_type()))) << a.name;
  }
}

TEST_F(HuggingFace, OutAndInAgainInEveryDtype) {
  for (const bool tied : {false, true}) {
    const LlamaConfig config = small_config(tied);
    const Parameters model = saved(folder_ / "model", config);
    for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
      const Parameters read = make_parameters(config, type);
      load_huggingface(folder_ / "model", config, read);
      expect_same(read, model);
    }
    const SafetensorsFolder weights(folder_ / "model");
    EXPECT_EQ(weights.tensors().contains("lm_head.weight"), !tied);
    EXPECT_EQ(read_huggingface_config((folder_ / "model").string()).attention_bias, true);
  }
}

TEST_F(HuggingFace, MastersGetTheFullPrecision) {
  const LlamaConfig config = small_config(false);
  const Parameters model = saved(folder_ / "model", config);
  const Parameters read = make_parameters(config, at::kBFloat16);
  const at::Tensor master = at::empty({read.flat_numel()}, at::kFloat);
  load_huggingface(folder_ / "model", config, read, master);
  for (const Parameter& p : model.list()) {
    EXPECT_TRUE(at::equal(master.narrow(0, p.offset, p.numel()), p.value.flatten())) << p.name;
  }
}

TEST_F(HuggingFace, ARankReadsItsShardAlone) {
  const LlamaConfig config = small_config(false);
  const Parameters model = saved(folder_ / "model", config);
  for (const int64_t dim : {0, 1}) {
    for (int64_t rank = 0; rank < 3; ++rank) {
      const Parameters read = make_parameters(config, at::kFloat, dim, rank, 3);
      load_huggingface(folder_ / "model", config, read);
      for (size_t i = 0; i < model.list().size(); ++i) {
        const Parameter& mine = read.list()[i];
        const at::Tensor whole = model.list()[i].value;
        EXPECT_TRUE(at::equal(mine.value, whole.narrow(mine.shard.dim, mine.shard.begin,
                                                       mine.shard.end - mine.shard.begin)))
            << mine.name << " dim " << dim << " rank " << rank;
      }
    }
  }
}

TEST_F(HuggingFace, LargeModelsAreSplitAndReadAgain) {
  const LlamaConfig config = small_config(false);
  const Parameters model = saved(folder_ / "model", config, at::kFloat, {.file_bytes = 8000});
  EXPECT_FALSE(fs::exists(folder_ / "model" / "model.safetensors"));
  EXPECT_TRUE(fs::exists(folder_ / "model" / "model.safetensors.index.json"));
  for (const auto& entry : fs::directory_iterator(folder_ / "model")) {
    if (entry.path().extension() == ".safetensors") {
      EXPECT_LT(entry.file_size(), 10'000U);
    }
  }
  const Parameters read = make_parameters(config, at::kFloat);
  load_huggingface(folder_ / "model", config, read);
  expect_same(read, model);
}

// The format allows any beginning; old files have it.
TEST_F(HuggingFace, DataThatIsNotAlignedIsRead) {
  const LlamaConfig config = small_config(true);
  const Parameters model = saved(folder_ / "model", config);
  const fs::path file = folder_ / "model" / "model.safetensors";
  std::ifstream stream(file, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  bytes.insert(8 + header, 3, ' ');
  header += 3;
  std::memcpy(bytes.data(), &header, 8);
  write(file, bytes);
  const Parameters read = make_parameters(config, at::kFloat, 1, 1, 2);
  load_huggingface(folder_ / "model", config, read);
  EXPECT_TRUE(at::equal(read.list()[0].value, model.list()[0].value.narrow(1, 12, 12)));
}

TEST_F(HuggingFace, WhatDoesNotFitIsNamed) {
  const LlamaConfig config = small_config(false);
  const fs::path folder = folder_ / "model";
  saved(folder, config);
  const auto refusal = [&](const std::function<void(LlamaConfig&)>& change) {
    LlamaConfig other = config;
    change(other);
    const Parameters parameters = make_parameters(other, at::kFloat);
    const std::string message = message_of([&] { load_huggingface(folder, other, parameters); });
    EXPECT_NE(message.find(folder.string()), std::string::npos) << message;
    return message;
  };
  const std::string fewer = refusal([](LlamaConfig& c) { c.num_hidden_layers = 1; });
  EXPECT_NE(fewer.find("model.layers.1."), std::string::npos) << fewer;
  EXPECT_NE(fewer.find("more"), std::string::npos) << fewer;
  const std::string more = refusal([](LlamaConfig& c) { c.num_hidden_layers = 3; });
  EXPECT_NE(more.find("lacks tensors"), std::string::npos) << more;
  const std::string wider = refusal([](LlamaConfig& c) { c.vocab_size = 52; });
  EXPECT_NE(wider.find("has shape [51, 24], and the model needs [52, 24]"), std::string::npos)
      << wider;
  const std::string biased = refusal([](LlamaConfig& c) { c.mlp_bias = true; });
  EXPECT_NE(biased.find("mlp.down_proj.bias"), std::string::npos) << biased;
  saved(folder, small_config(true));
  const std::string untied = refusal([](LlamaConfig&) {});
  EXPECT_NE(untied.find("tie_word_embeddings"), std::string::npos) << untied;
}

TEST_F(HuggingFace, HarmlessExtraTensorsAndOddDtypes) {
  const LlamaConfig config = small_config(true);
  const Parameters model = make_parameters(config, at::kFloat);
  fs::create_directory(folder_ / "model");
  std::vector<std::byte> zeros(100'000);
  const auto write_with = [&](const std::vector<TensorHeader>& others, StoredType type) {
    std::vector<TensorHeader> tensors = others;
    for (const Parameter& p : model.list()) tensors.push_back({p.name, type, p.full_shape});
    write_safetensors(
        folder_ / "model" / "model.safetensors", tensors, {}, [&](const TensorHeader& t) {
          return std::span<const std::byte>(zeros).first(static_cast<size_t>(t.bytes()));
        });
  };
  write_with({{"model.layers.0.self_attn.rotary_emb.inv_freq", StoredType::F32, {3}},
              {"lm_head.weight", StoredType::F32, {51, 24}}},
             StoredType::F16);
  EXPECT_NO_THROW(load_huggingface(folder_ / "model", config, model));
  write_with({{"model.layers.0.self_attn.q_norm.weight", StoredType::F32, {6}}}, StoredType::F32);
  EXPECT_NE(message_of([&] { load_huggingface(folder_ / "model", config, model); }).find("q_norm"),
            std::string::npos);
  write_with({}, StoredType::I8);
  const std::string quantised =
      message_of([&] { load_huggingface(folder_ / "model", config, model); });
  EXPECT_NE(quantised.find("dtype I8"), std::string::npos) << quantised;
}

TEST_F(HuggingFace, AFolderIsWholeOrAbsent) {
  const LlamaConfig config = small_config(false);
  const Parameters model = saved(folder_ / "model", config);
  // A limit on the size of files fails a write in its middle, as a full disk does.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 10'000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Parameters other = make_parameters(config, at::kFloat);
  EXPECT_THROW(save_huggingface(folder_ / "model", config, other, {}), RunError);
  EXPECT_THROW(save_huggingface(folder_ / "new", config, other, {}), RunError);
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(entries(folder_), 1U) << "nothing half-written is left";
  const Parameters read = make_parameters(config, at::kFloat);
  load_huggingface(folder_ / "model", config, read);
  expect_same(read, model);
}

TEST_F(HuggingFace, AModelIsReplacedAndNothingElseIs) {
  const LlamaConfig config = small_config(false);
  const fs::path folder = folder_ / "deep" / "step" / "model";
  saved(folder, config, at::kFloat, {.file_bytes = 8000});
  const Parameters second = saved(folder.string() + "/", config);
  EXPECT_EQ(entries(folder), 3U) << "the files of the first are gone";
  EXPECT_EQ(entries(folder.parent_path()), 1U);
  const Parameters read = make_parameters(config, at::kFloat);
  load_huggingface(folder, config, read);
  expect_same(read, second);
  fs::create_directory(folder_ / "papers");
  write(folder_ / "papers" / "thesis.txt", "three years");
  const std::string message = message_of([&] { saved(folder_ / "papers", config); });
  EXPECT_NE(message.find("papers"), std::string::npos) << message;
  EXPECT_TRUE(fs::exists(folder_ / "papers" / "thesis.txt"));
  write(folder_ / "file", "x");
  EXPECT_NE(message_of([&] { saved(folder_ / "file" / "model", config); }).find("cannot write"),
            std::string::npos);
}

TEST_F(HuggingFace, CopiesConvertAndKeepTheTokenizer) {
  const LlamaConfig config = small_config(true);
  const Parameters model = saved(folder_ / "model", config, at::kFloat, {.tokenizer = "bytes"});
  write(folder_ / "model" / "tokenizer.json", "{}");
  write(folder_ / "model" / "pytorch_model.bin", "old");
  copy_huggingface(folder_ / "model", folder_ / "copy", DType::bfloat16);
  EXPECT_EQ(tokenizer_of(folder_ / "copy"), "bytes");
  EXPECT_TRUE(fs::exists(folder_ / "copy" / "tokenizer.json"));
  EXPECT_FALSE(fs::exists(folder_ / "copy" / "pytorch_model.bin"));
  const Parameters read = make_parameters(config, at::kBFloat16);
  load_huggingface(folder_ / "copy", config, read);
  expect_same(read, model);
  EXPECT_EQ(SafetensorsFolder(folder_ / "copy").tensors().begin()->second.type, StoredType::BF16);
  saved(folder_ / "silent", config);
  EXPECT_EQ(tokenizer_of(folder_ / "silent"), "");
}

TEST_F(HuggingFace, FindsTheModelOfACheckpoint) {
  const LlamaConfig config = small_config(true);
  EXPECT_NE(message_of([&] { find_model_folder(folder_); }).find("holds no model"),
            std::string::npos);
  EXPECT_NE(message_of([&] { find_model_folder(folder_ / "nowhere"); }).find("is not a folder"),
            std::string::npos);
  saved(folder_ / "9" / "model", config);
  saved(folder_ / "10" / "model", config);
  fs::create_directories(folder_ / "11" / "model");  // not complete
  fs::create_directories(folder_ / "99999999999999999999");
  saved(folder_ / "best" / "model", config);
  EXPECT_EQ(find_model_folder(folder_), folder_ / "10" / "model");
  EXPECT_EQ(find_model_folder(folder_ / "9"), folder_ / "9" / "model");
  EXPECT_EQ(find_model_folder(folder_ / "9" / "model"), folder_ / "9" / "model");
}

}  // namespace
}  // namespace picotron
